"""The rows of a benchmark: what one holds, and how each is kept when it is measured. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.reader import kept

SCHEMA = "evdit.bench-row/1"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kernel under a mask. Shares are of token pairs, but `block_sparsity`: of 128 x 128 blocks without a kept pair.

    `ms` is the median, `spread` the width of the middle half over it, `dense_ms` the fastest dense kernel timed in
    turns with this one; `speedup` = dense_ms / ms, `ideal` = 1 / kept_share, `efficiency` = speedup / ideal. `memory`
    is the most that a forward call allocates, in sizes of its output, which counts. `error` is the largest relative one
    found at full size, `errors` all that were looked at and `allowed` what passes. None where there is no number:
    `note` says why; `failed` says that the kernel did not compute what it should.
    """

    mask: str
    kernel: str
    is_dense: bool
    kept_share: float
    skipped_share: float
    block_sparsity: float
    ideal: float
    ms: float | None = None
    spread: float | None = None
    repeats: int | None = None
    tflops: float | None = None
    dense_ms: float | None = None
    speedup: float | None = None
    efficiency: float | None = None
    memory: float | None = None
    error: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    failed: bool = False
    measured: str | None = None


class RowFolder:
    """Rows on disk, a file each, written whole; a row that failed is not kept, so that it is tried again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, mask: str, kernel: str) -> Path:
        """Where the row of a mask and a kernel stands."""
        return self.path / f"{mask.replace(':', '-')} {kernel}.json".replace(" ", "-")

    def read(self, mask: str, kernel: str) -> Row | None:
        """The row if it was measured before; one whose file is damaged is measured again."""
        return kept(Row, self.file(mask, kernel), "row", SCHEMA)

    def keep(self, rows: Iterable[Row]) -> None:
        """Write each row that did not fail."""
        for row in rows:
            if not row.failed:
                write_json(self.file(row.mask, row.kernel), {"schema": SCHEMA, **asdict(row)})


def fastest(rows: Iterable[Row]) -> Row | None:
    """The timed row of the fewest ms."""
    timed = [row for row in rows if row.ms is not None]
    return min(timed, key=lambda row: row.ms or 0.0) if timed else None


def break_even(rows: Iterable[Row]) -> str:
    """From which mask on the best tile kernel is faster than the fastest dense one, in words; or that none is.

    A speed-up that may be chance (`doubt`) is none.
    """
    best: dict[str, Row] = {}
    for row in rows:
        if not row.is_dense and row.speedup is not None:
            best[row.mask] = max(best.get(row.mask, row), row, key=lambda each: each.speedup or 0.0)
    if not best:
        return "break-even: nothing was timed"
    pays: Row | None = None
    for row in sorted(best.values(), key=lambda each: each.kept_share):
        if (row.speedup or 0.0) <= 1 + doubt(row):
            break
        pays = row
    if pays is None:
        return "break-even: none; no mask here is faster than the fastest dense kernel"
    return (
        f"break-even: faster than the fastest dense kernel from {pays.mask} on "
        f"(kept {pays.kept_share:.1%}, skipped {pays.skipped_share:.1%} of pairs; {pays.kernel})"
    )


def doubt(row: Row) -> float:
    """How far above 1 a row's speed-up must be not to be chance: two standard errors of a ratio of medians.

    The standard error of a median is .93 of the middle half's width over the root of the repeats (normal repeats); the
    rival's is taken to be the same.
    """
    return 2 * 2**0.5 * 0.93 * row.spread / row.repeats**0.5 if row.spread is not None and row.repeats else 0.0


def as_content(row: Row) -> dict[str, Any]:
    """The row as JSON values."""
    return asdict(row)
