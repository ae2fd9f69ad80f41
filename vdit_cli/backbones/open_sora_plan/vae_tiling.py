"""Encode or decode a video tile by tile, in space and time, to bound the memory; seams are blended linearly.

Letters: B batch, C channels, T frames, H, W height and width, of whatever goes in or comes out.
Source: the tiling of Open-Sora-Plan v1.2.0, down to its seams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vdit_cli.errors import EvditError


@dataclass(frozen=True)
class Tiling:
    """How one direction is cut: tiles of `size` pixels and `frames` in, made at every `step`; all of it square.

    Coming out, neighbours overlap by `blend` and a tile keeps `kept` before the next one starts.
    """

    size: int
    step: int
    frames: int
    blend: int
    kept: int

    @classmethod
    def of(cls, size: int, frames: int, size_out: int, overlap: float) -> Tiling:
        """Tiles of `size` in and `size_out` out that share the fraction `overlap` with their neighbour.

        Raises EvditError when the step between tiles is not the same distance on both sides, or is none.
        """
        step, blend = int(size * (1 - overlap)), int(size_out * overlap)
        kept = size_out - blend
        if step < 1 or frames < 2 or step * size_out != kept * size:
            raise EvditError(
                f"VAE tiles of {size} to {size_out} at an overlap of {overlap}, {frames} frames, do not fit: the step "
                f"between tiles must be a whole number on both sides, and a tile needs 2 frames",
                next_steps=["tile_overlap_factor 0.25", "tile_overlap_factor 0.125"],
            )
        return cls(size, step, frames, blend, kept)

    def time_spans(self, frames: int) -> list[tuple[int, int]]:
        """[start, stop) of each run of frames; a run starts at the last frame of the one before."""
        starts = range(0, max(frames - 1, 1), self.frames - 1)
        return [(start, min(start + self.frames, frames)) for start in starts]


def run_tiled(run: Callable[[Tensor], Tensor], x_BCTHW: Tensor, tiling: Tiling) -> Tensor:
    """`run` on each tile of `x_BCTHW`, joined: the frame that two runs of frames share is taken from the first."""
    spans = tiling.time_spans(x_BCTHW.shape[2])
    parts = [_run_frames(run, x_BCTHW[:, :, start:stop], tiling, drop=int(start > 0)) for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _run_frames(run: Callable[[Tensor], Tensor], x_BCTHW: Tensor, tiling: Tiling, drop: int) -> Tensor:
    """Every tile of one run of frames, blended and joined, without the first `drop` frames of the result."""
    rows = []
    above: dict[int, Tensor] = {}
    for top in range(0, x_BCTHW.shape[3], tiling.step):
        row = []
        left: Tensor | None = None
        for start in range(0, x_BCTHW.shape[4], tiling.step):
            tile = run(x_BCTHW[..., top : top + tiling.size, start : start + tiling.size])[:, :, drop:]
            if start in above:
                _blend(above[start], tile, 3)
            if left is not None:
                _blend(left, tile, 4)
            above[start], left = _end(tile, 3, tiling.blend), _end(tile, 4, tiling.blend)
            row.append(tile[..., : tiling.kept, : tiling.kept])
        rows.append(torch.cat(row, dim=4))
    return torch.cat(rows, dim=3)


def _end(tile: Tensor, dim: int, count: int) -> Tensor:
    """A copy of the last `count` rows or columns, so that the tile itself can be freed."""
    count = min(count, tile.shape[dim])
    return tile.narrow(dim, tile.shape[dim] - count, count).clone()


def _blend(before: Tensor, tile: Tensor, dim: int) -> None:
    """Fade from the end of the tile `before` to the start of `tile`, in place."""
    count = min(before.shape[dim], tile.shape[dim])
    shape = [1] * tile.ndim
    shape[dim] = count
    rise = (torch.arange(count, device=tile.device, dtype=tile.dtype) / max(count, 1)).view(shape)
    start = tile.narrow(dim, 0, count)
    start.copy_(before.narrow(dim, before.shape[dim] - count, count) * (1 - rise) + start * rise)
