"""What the paper printed, to stand beside what is measured here. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 1: latent frames, mask ("full" is F:0), sparsity in % of 128-blocks, ms, speed-up over full."""

    frames: int
    mask: str
    sparsity: str
    ms: float
    speedup: float


TABLE_1: tuple[PaperRow, ...] = (
    PaperRow(8, "8:0", "0.00", 58.36, 1.00),
    PaperRow(8, "4:4", "17.60", 46.52, 1.25),
    PaperRow(8, "3:5", "29.88", 40.08, 1.46),
    PaperRow(8, "2:6", "45.47", 31.35, 1.86),
    PaperRow(8, "1:7", "64.38", 20.65, 2.83),
    PaperRow(24, "24:0", "0.00", 523.61, 1.00),
    PaperRow(24, "12:12", "21.51", 397.72, 1.32),
    PaperRow(24, "8:16", "40.30", 303.90, 1.72),
    PaperRow(24, "6:18", "51.88", 244.13, 2.14),
    PaperRow(24, "4:20", "64.98", 179.74, 2.91),
    PaperRow(24, "3:21", "72.05", 142.77, 3.67),
)
"""Table 1 of arXiv 2502.06155: attention of Open-Sora-Plan v1.2 at 720p (8 latent frames are 29, 24 are 93)."""

VIDEO_FRAMES = {8: 29, 24: 93}
"""Frames of the video by latent frames, in Table 1."""


def sparsity(row: PaperRow) -> str:
    """Our count of the same: % of 128 x 128 blocks without a kept pair, with the paper's two decimals."""
    mask = TileMask.parse(row.mask, row.frames)
    return f"{100 * (1 - mask.kept_block_share(VideoGrid(row.frames, 45, 80))):.2f}"
