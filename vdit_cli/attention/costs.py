"""Seconds of attention under a mask, as measured on a machine (attention/kernel_times.py), kept in the cache folder.

A table belongs to one device and to the versions of torch, Triton and evdit; with another one it is empty. It decides
how generation computes a mask, never which mask, unless a search is given one (`--costs FILE`) to choose a plan by its
time. Reading a table needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from vdit_cli import __version__
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.artifacts.places import user_cache_path
from vdit_cli.errors import EvditError
from vdit_cli.reader import Count, advising, read
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan_json import StoredMask

if TYPE_CHECKING:
    import torch

    from vdit_cli.attention.bind import Case

SCHEMA = "evdit.cost-table/1"
KIND = "cost table"
COSTS_FILE = "costs.json"
MAKES_ONE = "evdit bench attention  (makes one)"
GATHER = "gather"
"""In place of a kernel, of the full mask: what `kernel_times.measure_gather` measures; no kernel has that name."""
SHORTEST, LONGEST = 1e-12, 1e12
"""Seconds that a call may take in a table: less than a clock's tick and more than 30,000 years are no measurement."""


@dataclass(frozen=True)
class Machine:
    """What times hold for: the device's name, and the versions of torch, Triton and evdit."""

    device: str
    torch_version: str
    triton_version: str
    evdit_version: str = __version__

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """This machine, with the GPU `device`, or with its CPU and number of threads."""
        import torch

        try:
            triton = version("triton")
        except PackageNotFoundError:
            triton = "none"
        is_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if is_gpu else f"{device.type} x {torch.get_num_threads()}"
        return cls(name, torch.__version__, triton)


@dataclass(frozen=True)
class Row:
    """What was timed: a kernel computing a mask for a case (the case's device is the table's)."""

    dtype: str
    head_dim: int
    heads: int
    batch: int
    grid: VideoGrid
    mask: TileMask
    needs_grad: bool
    kernel: str

    @classmethod
    def of(cls, mask: TileMask, case: Case, kernel: str) -> Row:
        """The row of `kernel` computing `mask` for `case`; a frame's rows and columns do not matter, its tokens do.

        Every mask that keeps all tiles counts as the full one.
        """
        dtype = str(case.dtype).removeprefix("torch.")
        grid = replace(case.grid, rows=1, cols=case.grid.frame_tokens)
        mask = TileMask.dense(mask.frames) if mask.is_dense else mask
        return cls(dtype, case.head_dim, case.heads, case.batch, grid, mask, case.needs_grad, kernel)

    def content(self) -> dict[str, Any]:
        """The row as JSON values."""
        mask = {"mask": self.mask.name, "global_frames": list(self.mask.global_frames)}
        return {**asdict(self), "grid": asdict(self.grid), **mask}


@dataclass(frozen=True)
class StoredRow(StoredMask):
    """A row in JSON, beside the mask its case, its kernel and its seconds."""

    dtype: str
    head_dim: Count
    heads: Count
    batch: Count
    grid: VideoGrid
    needs_grad: bool
    kernel: str
    seconds: Annotated[float, Ge(SHORTEST), Le(LONGEST)]

    def row(self, origin: str) -> Row:
        """What was timed. Raises EvditError where the mask's name and frames disagree."""
        own = {each.name: getattr(self, each.name) for each in fields(Row)}
        return Row(**{**own, "mask": self.on(self.grid, origin)})


@dataclass(frozen=True)
class StoredCosts:
    """The keys of a table's file."""

    machine: Machine
    rows: list[StoredRow]


@dataclass(frozen=True)
class CostTable:
    """Seconds a call (forward, and backward where gradients are needed) of what was measured on `machine`."""

    machine: Machine
    rows: Mapping[Row, float] = field(default_factory=dict)

    def seconds(self, mask: TileMask, case: Case, kernel: str | None = None) -> float | None:
        """Seconds of `kernel`, or of the fastest one, computing `mask` for `case`; None where nothing was measured."""
        timed = self.timed(mask, case)
        return timed.get(kernel) if kernel is not None else min(timed.values(), default=None)

    def timed(self, mask: TileMask, case: Case) -> dict[str, float]:
        """Seconds by kernel."""
        wanted = Row.of(mask, case, "")
        found = {row.kernel: time for row, time in self.rows.items() if replace(row, kernel="") == wanted}
        return {kernel: time for kernel, time in found.items() if kernel != GATHER}

    def over_dense(self, mask: TileMask, case: Case, kernel: str) -> float | None:
        """Time of `kernel` over the fastest time of the full mask where that is above 1, both measured; else None."""
        own, full = self.seconds(mask, case, kernel), self.seconds(TileMask.dense(mask.frames), case)
        return own / full if own and full and own > full and not mask.is_dense else None

    def with_times(self, mask: TileMask, case: Case, times: Mapping[str, float]) -> CostTable:
        """The table with these seconds by kernel added or replaced."""
        added = {Row.of(mask, case, kernel): seconds for kernel, seconds in times.items()}
        return replace(self, rows={**self.rows, **added})

    def joined(self, other: CostTable) -> CostTable:
        """The rows of both, those of `other` where both have one. Raises ValueError for tables of two machines."""
        if other.machine != self.machine:
            raise ValueError(f"times of {other.machine} do not go with those of {self.machine}")
        return replace(self, rows={**self.rows, **other.rows})

    def write(self, path: Path | None = None) -> Path:
        """Write the table as JSON, to its place in the user's cache folder if no other is given; returns the file."""
        path = path or cache_file(self.machine)
        write_json(path, self.content())
        return path

    def content(self) -> dict[str, Any]:
        """The table as JSON values."""
        rows = [{**row.content(), "seconds": seconds} for row, seconds in self.rows.items()]
        return {"schema": SCHEMA, "machine": asdict(self.machine), "rows": rows}

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return content_digest(self.content())

    @classmethod
    def read(cls, machine: Machine, say: Callable[[str], None], path: Path | None = None) -> CostTable:
        """The table of `machine` in `path` or in the cache folder; empty where there is none.

        A file that is no whole table of this machine is left out, and `say` is told in a line.
        """
        path = path or cache_file(machine)
        if not path.exists():
            return cls(machine)
        try:
            table = cls.load(path)
            if table.machine != machine:
                raise EvditError("it is of another version or machine", where=str(path))
            return table
        except EvditError as error:
            say(f"warning: the measured times in {path} are left out: {error.what} ({error.where})")
            return cls(machine)

    @classmethod
    def load(cls, path: Path) -> CostTable:
        """The table of whatever machine in a file that a person names, or in costs.json of a run folder.

        Raises EvditError for what is no whole table.
        """
        with advising([MAKES_ONE]):
            if path.is_dir() and not (path / COSTS_FILE).exists():
                raise EvditError(f"{path} holds no {COSTS_FILE}", where=str(path))
            path = path / COSTS_FILE if path.is_dir() else path
            stored = read(StoredCosts, path, KIND, SCHEMA)
            rows: dict[Row, float] = {}
            for place, each in enumerate(stored.rows):
                row = each.row(f"{path} row {place}")
                if row in rows:
                    raise EvditError("this was timed in an earlier row", where=f"{path} row {place}")
                rows[row] = each.seconds
            return cls(stored.machine, rows)


def cache_file(machine: Machine) -> Path:
    """Where the table of a machine is kept."""
    name = f"{content_digest(asdict(machine))[:16]}.json"
    return user_cache_path() / "attention-costs" / name


def remember(found: CostTable, say: Callable[[str], None], path: Path | None = None) -> None:
    """Add the rows of `found` to the table in `path`, or of its machine in the cache folder, for "auto" to choose by.

    Where that can't be written `say` is told in a line, and nothing else comes of it.
    """
    if not found.rows:
        return
    try:
        CostTable.read(found.machine, say, path).joined(found).write(path)
    except EvditError as error:
        say(f"warning: the measured times are not kept for later runs: {error}")
