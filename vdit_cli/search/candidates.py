"""The masks that a search chooses among, in the order that every table has them: the full one first. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from vdit_cli.tiles.mask import TileMask


def in_order(masks: Iterable[TileMask], frames: int) -> tuple[TileMask, ...]:
    """These masks of F `frames` from the densest to the sparsest, each once, with the full one before them.

    Another mask that keeps all tiles is the full one; of equally dense ones that of the earlier frames comes first.
    Raises ValueError for a mask of other frames.
    """
    found = {TileMask.dense(frames)}
    for mask in masks:
        if mask.frames != frames:
            raise ValueError(f"a mask of {mask.frames} frames does not go with those of {frames}")
        if not mask.is_dense:
            found.add(mask)
    return tuple(sorted(found, key=lambda mask: (-mask.kept_tiles, mask.global_frames)))


def usual_masks(frames: int) -> tuple[TileMask, ...]:
    """The candidates by default [ours]: the full mask, strides 2, 4, 8, ..., the divisors of F, and F itself.

    Powers of two nest, so that one order of frames serves them all. 24 frames have 24:0, 12:12, 8:16, 6:18, 4:20, 3:21,
    2:22 (strides 12 and 16) and 1:23.
    """
    powers = (2**power for power in range(1, frames.bit_length()))
    divisors = (stride for stride in range(2, frames + 1) if frames % stride == 0)
    return in_order((TileMask.from_stride(frames, stride) for stride in (*powers, *divisors)), frames)
