"""The self-attention of real models by name: what `bench` measures and what a search looks costs up for. No torch.

Letters: F latent frames.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdit_cli.tiles.grid import VideoGrid


@dataclass(frozen=True)
class Preset:
    """The self-attention of a model at one size, the masks that are measured on it, and its layers (None: no model)."""

    grid: VideoGrid
    heads: int
    head_dim: int
    masks: tuple[str, ...]
    what: str
    layers: int | None = None


PRESETS: dict[str, Preset] = {
    "open-sora-plan-29": Preset(
        VideoGrid(8, 45, 80), 24, 96, ("4:4", "3:5", "2:6", "1:7"), "Open-Sora-Plan v1.2, 29 frames of 720p", 32
    ),
    "open-sora-plan-93": Preset(
        VideoGrid(24, 45, 80), 24, 96, ("12:12", "8:16", "6:18", "4:20", "3:21"), "Open-Sora-Plan v1.2, 93 x 720p", 32
    ),
    "cogvideox-5b": Preset(
        VideoGrid(13, 30, 45, text_before=226),
        48,
        64,
        ("7:6", "5:8", "4:9", "3:10", "2:11", "1:12"),
        "CogVideoX-5B, 49 frames of 480 x 720",
        42,
    ),
    "wan-480p": Preset(VideoGrid(21, 30, 52), 40, 128, ("7:14", "3:18"), "Wan 2.1 14B, 81 frames of 480 x 832", 40),
    "wan-720p": Preset(VideoGrid(21, 45, 80), 40, 128, ("7:14", "3:18"), "Wan 2.1 14B, 81 frames of 720p", 40),
    "hunyuan-720p": Preset(
        VideoGrid(33, 45, 80, text_after=256), 24, 128, ("11:22", "5:28"), "HunyuanVideo, 129 frames of 720p", 60
    ),
    "shapes": Preset(VideoGrid(8, 8, 8), 6, 48, ("4:4", "3:5", "2:6", "1:7"), "the embedded model, 29 x 128 x 128", 8),
    "tiles-256": Preset(VideoGrid(8, 16, 16), 6, 48, ("4:4", "2:6", "1:7"), "8 frames of 256 tokens"),
}
"""Shapes by name. The masks are those of the tables in the docs; Hunyuan's are a third and a seventh of its frames,
as Wan's are [ours]; its layers are 20 that keep text apart and 40 that do not."""
