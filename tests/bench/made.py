"""Rows of 8 frames made by hand."""

from __future__ import annotations

from vdit_cli.bench.rows import Row
from vdit_cli.tiles.mask import TileMask


def row(
    mask: str,
    kernel: str,
    ms: float | None,
    speedup: float | None,
    is_dense: bool = False,
    note: str | None = None,
    failed: bool = False,
) -> Row:
    """A row with these times, its shares those of the mask."""
    kept = TileMask.parse(mask, 8).kept_share
    return Row(
        mask=mask,
        kernel=kernel,
        is_dense=is_dense,
        kept_share=kept,
        skipped_share=1 - kept,
        block_sparsity=1 - kept,
        ideal=1 / kept,
        ms=ms,
        speedup=speedup,
        note=note,
        failed=failed,
    )
