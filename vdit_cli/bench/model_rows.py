"""A measured step as a row, how each is kept when it is measured, and what follows from several. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.bench.model_sizes import DENSE
from vdit_cli.reader import kept

SCHEMA = "evdit.bench-step/1"
PLAIN, EAGER, COMPILED = "plain", "eager", "compiled"


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A denoising step under a plan: `way` is plain, eager or compiled, `guided` doubles the batch.

    `ms` is the median of `repeats`, `spread` the middle half over it. `attention_ms` is the self-attention inside an
    eager step of the same plan, `rest_ms` what is left of `ms`, `attention_share` the one over `ms`. `tflops` counts
    kept pairs and linear layers, `of_peak` is it over the matrix peak, `rest_of_peak` the linear layers alone over
    `rest_ms` and the peak. Shares are of tiles. None where there is no number: `note` says why.
    """

    frames: int
    plan: str
    way: str
    guided: bool
    kept_share: float
    skipped_share: float
    kernels: list[str]
    ms: float | None = None
    spread: float | None = None
    repeats: int | None = None
    attention_ms: float | None = None
    rest_ms: float | None = None
    attention_share: float | None = None
    tflops: float | None = None
    of_peak: float | None = None
    rest_of_peak: float | None = None
    peak_bytes: int | None = None
    note: str | None = None
    measured: str | None = None


class StepFolder:
    """Rows on disk, a file each, written whole; one without a number is not kept, so that it is tried again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, frames: int, plan: str, way: str, guided: bool) -> Path:
        """Where a row stands."""
        branches = "guided" if guided else "one-branch"
        return self.path / f"{frames}-{plan.replace(':', '-').replace('=', '')}-{way}-{branches}.json"

    def read(self, frames: int, plan: str, way: str, guided: bool) -> StepRow | None:
        """The row if it was measured before; one whose file is damaged is measured again."""
        return kept(StepRow, self.file(frames, plan, way, guided), "row", SCHEMA)

    def keep(self, row: StepRow) -> None:
        """Write the row, if it has a number."""
        if row.ms is not None:
            file = self.file(row.frames, row.plan, row.way, row.guided)
            write_json(file, {"schema": SCHEMA, **asdict(row)})


def row_where(rows: Iterable[StepRow], **wanted: Any) -> StepRow | None:
    """The first row with a time whose fields are as wanted."""
    fits = (row for row in rows if row.ms and all(getattr(row, key) == value for key, value in wanted.items()))
    return next(fits, None)


def compared(rows: Sequence[StepRow]) -> list[dict[str, Any]]:
    """Each row with its speed-up over our dense step of the same way and branches and over the plain one.

    `predicted` = 1 / (1 - p + p tau): p the dense step's share of attention, tau the plan's attention over the dense
    one's; `gap` = speed-up / predicted - 1.
    """
    found = []
    for row in rows:
        content = asdict(row)
        dense = row_where(rows, frames=row.frames, plan=DENSE, way=row.way, guided=row.guided)
        plain = row_where(rows, frames=row.frames, plan=DENSE, way=PLAIN, guided=row.guided)
        if row.ms and plain and plain.ms:
            content["over_plain"] = plain.ms / row.ms
        if row.way != PLAIN and row.ms and dense and dense.ms:
            content["over_dense"] = dense.ms / row.ms
            content |= predicted(row, dense)
        found.append(content)
    return found


def predicted(row: StepRow, dense: StepRow) -> Mapping[str, float]:
    """The predicted speed-up of a plan over the dense step, and the gap to it; nothing for the dense step itself."""
    if row.plan == DENSE or not (row.ms and dense.ms and row.attention_ms and dense.attention_ms):
        return {}
    share, tau = dense.attention_ms / dense.ms, row.attention_ms / dense.attention_ms
    speedup = 1 / (1 - share + share * tau)
    return {"tau": tau, "predicted": speedup, "gap": dense.ms / row.ms / speedup - 1}
