"""Measure tile attention against the fastest dense attention of this machine: the work of `evdit bench attention`.

Rows are kept when they are measured, so the same command goes on with those that are missing. Nothing is timed before
it was compared with the float64 reference in this process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch

from vdit_cli.artifacts.atomic import write_json, write_text
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.attention.bind import KERNELS, Case
from vdit_cli.attention.costs import COSTS_FILE, CostTable, Machine, remember
from vdit_cli.attention.kernel_times import measure_gather
from vdit_cli.backbones.devices import pick_device, pick_dtype
from vdit_cli.bench.contenders import Contender, dense_contenders, tile_contender
from vdit_cli.bench.facts import machine_facts, package_versions, today
from vdit_cli.bench.failing import BenchFailed, check_measured
from vdit_cli.bench.measuring import Bench, blank_row, forget_compiled, free_memory, measure_group, open_bench
from vdit_cli.bench.picture import draw
from vdit_cli.bench.presets import Shape, kernels_of, shapes_of
from vdit_cli.bench.rows import Row, RowFolder, fastest
from vdit_cli.bench.tables import RESULTS_SCHEMA, as_markdown, paper_table, table_of
from vdit_cli.errors import ENVIRONMENT, GATE_FAILED, OUT_OF_MEMORY, EvditError, Interrupted, setting
from vdit_cli.knobs import deciding
from vdit_cli.reader import read_object
from vdit_cli.recipe import BenchAttentionOptions
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Progress

RESULTS, MARKDOWN, PICTURE = "results.json", "results.md", "results.png"
OPERANDS = 8
"""Tensors of the size of q that a measurement needs at least: q, k, v, the output, and gradients or scratch."""
SECONDS = {"cuda": 1.0, "cpu": 0.2}
"""Time for each mask where none is asked for: on a CPU a call takes long, and a few repeats are most of it."""
LESS_MEMORY = ("--batch 1", "--heads 1", "fewer --frame-tokens")


class JudgementFailed(BenchFailed):
    """Some kernel did not compute what it should, or raised; `results` holds all that was measured beside it."""

    def __init__(self, results: dict[str, Any], failures: list[str], folder: Path) -> None:
        super().__init__(
            f"{len(failures)} of the rows did not pass: a kernel is timed only where it agrees with the reference "
            f"({'; '.join(failures)})",
            results,
            where=folder / RESULTS,
            next_steps=["the same command again, which tries only these rows"],
            exit_code=GATE_FAILED,
        )


def bench_attention(options: BenchAttentionOptions, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Measure all tables that the options ask for into the run `out` and return what is in its results.json.

    Without `out` the run is `runs/<date>-bench-attention-<preset>`; one that is done already is read and not measured.
    Raises EvditError for names, sizes and devices that can't be, Interrupted after Ctrl-C with all rows kept, and
    BenchFailed at the end where a kernel did not pass or nothing could be measured for want of memory.
    """
    shapes = shapes_of(options)
    kernels = kernels_of(options, KERNELS)
    device = pick_device(options.device)
    if device.type not in ("cpu", "cuda"):
        rule = f"{device} can't be measured: there is a clock for cpu and cuda"
        raise EvditError(rule, where=options.where("device"), next_steps=["--device cpu"], exit_code=ENVIRONMENT)
    dtype = pick_dtype(options.dtype, device)
    cases = [
        Case(shape.grid, shape.heads, shape.head_dim, shape.batch, dtype, device, shape.backward) for shape in shapes
    ]
    if kernels and not (out is not None and (out / RESULTS).exists()):
        for case in cases:
            check_memory(case, options)
    run = RunDir.start(out, request_for(options, shapes, device, dtype))
    if run.is_done():
        progress.say(f"{run.path} is done already")
        return read_object(dict[str, Any], run.path / RESULTS, "result", RESULTS_SCHEMA)
    progress.say(f"rows are kept in {run.path}")
    with run:
        return measure_all(run, options, list(zip(shapes, cases, strict=True)), kernels, progress)


def request_for(
    options: BenchAttentionOptions, shapes: list[Shape], device: torch.device, dtype: torch.dtype
) -> Request:
    """What decides the run: the options, and the machine and torch that numbers are of, for rows must not mix."""
    values = deciding(options)
    values |= {"dtype": str(dtype).removeprefix("torch."), "device": device.type, "torch": torch.__version__}
    values["machine"] = machine_facts(device)["kind"]
    values["seconds"] = seconds_of(options, device)
    name = "all" if options.every else "table-1" if options.table is not None else shapes[0].name
    return Request("bench-attention", name, values, origins=dict(options.origins))


def measure_all(
    run: RunDir,
    options: BenchAttentionOptions,
    tables: list[tuple[Shape, Case]],
    kernels: tuple[str, ...],
    progress: Progress,
) -> dict[str, Any]:
    """Every table in order, then results.json, results.md and the picture. Raises BenchFailed after writing."""
    device = tables[0][1].device
    results: dict[str, Any] = {
        "schema": RESULTS_SCHEMA,
        "command": command_of(options),
        "date": today(),
        "dtype": str(tables[0][1].dtype).removeprefix("torch."),
        "machine": machine_facts(device),
        "versions": package_versions(),
        "tables": {},
    }
    rows: dict[str, list[Row]] = {}
    for shape, case in tables:
        rows[shape.key] = measure_shape(shape, case, kernels, options, run.path, progress)
        results["tables"][shape.key] = table_of(shape, rows[shape.key])
        free_memory(device)
        forget_compiled(device)
    paper = paper_table(tables, rows)
    if paper is not None:
        results["tables"]["table-1"] = paper
    results["machine_after"] = machine_facts(device)
    write_json(run.path / RESULTS, results)
    write_text(run.path / MARKDOWN, as_markdown(results))
    roles = [("results", RESULTS), ("markdown", MARKDOWN)]
    if (run.path / COSTS_FILE).exists():
        roles.append(("costs", COSTS_FILE))
    if draw(results, run.path / PICTURE):
        roles.append(("picture", PICTURE))
    for role, name in roles:
        run.add_output(role, name)
    failures = [
        f"{key} {row.mask} {row.kernel}: {row.note}" for key, found in rows.items() for row in found if row.failed
    ]
    if failures:
        raise JudgementFailed(results, failures, run.path)
    every = [(row.ms, row.note) for found in rows.values() for row in found]
    check_measured(every, results, run.path / RESULTS, LESS_MEMORY)
    return results


def measure_shape(
    shape: Shape,
    case: Case,
    kernels: tuple[str, ...],
    options: BenchAttentionOptions,
    folder: Path,
    progress: Progress,
) -> list[Row]:
    """The rows of a table: the dense kernels, then each mask with all kernels; those in `folder` are kept.

    Times also go into the user's cost table and into that of the run. Without kernels the rows have the shares of the
    masks and no times.
    """
    if not kernels:
        return [blank_row(shape, mask, "none", is_dense=False) for mask in shape.masks]
    dense = dense_contenders(shape.grid.frames, case.device)
    groups = [dense, *([tile_contender(kernel, mask) for kernel in kernels] for mask in shape.masks)]
    progress.stage(shape.key, len(groups))
    kept = RowFolder(folder / "rows" / shape.key)
    seconds = seconds_of(options, case.device)
    opened: list[Bench] = []
    rows: list[Row] = []
    for group in groups:
        rival = None if group is dense else rival_of(dense, rows)
        found = {each.name: kept.read(each.mask.name, each.name) for each in group}
        missing = [each for each in group if found[each.name] is None]
        if missing:
            if progress.should_stop():
                steps = ["the same command again"]
                raise Interrupted(f"stopped in {shape.key}: the rows that were measured are kept", next_steps=steps)
            if not opened:
                opened.append(open_bench(shape, case, seconds, options.least_repeats, options.seed))
                gather = CostTable(Machine.of(case.device))
                gather = gather.with_times(TileMask.dense(shape.grid.frames), case, measure_gather(case))
                keep_costs(gather, folder, progress)
            measured = measure_group(opened[0], missing, rival)
            keep_costs(costs_of(group[0].mask, case, measured), folder, progress)
            kept.keep(measured)
            found |= {row.kernel: row for row in measured}
        rows += [row for each in group if (row := found[each.name]) is not None]
        progress.advance(group[0].mask.name)
    return rows


def seconds_of(options: BenchAttentionOptions, device: torch.device) -> float:
    """How long each mask is timed: as asked, else by `SECONDS`."""
    return SECONDS[device.type] if options.seconds is None else options.seconds


def keep_costs(found: CostTable, folder: Path, progress: Progress) -> None:
    """Add the times to the user's table, for "auto" to choose by, and to the run's, for a search of masks."""
    for path in (None, folder / COSTS_FILE):
        remember(found, progress.say, path)


def costs_of(mask: TileMask, case: Case, rows: Iterable[Row]) -> CostTable:
    """The times of a group's rows, seconds a call; those of the dense kernels tell a mask that does not pay."""
    times = {row.kernel: row.ms / 1000 for row in rows if row.ms is not None}
    return CostTable(Machine.of(case.device)).with_times(mask, case, times)


def rival_of(dense: list[Contender], rows: list[Row]) -> Contender | None:
    """The dense contender whose row is the fastest; None where no dense kernel was timed."""
    best = fastest(row for row in rows if row.is_dense)
    return next((each for each in dense if best is not None and each.name == best.kernel), None)


def check_memory(case: Case, options: BenchAttentionOptions) -> None:
    """Raise EvditError (exit 4) for operands that the device has no room for, before anything runs."""
    numbers = case.batch * case.grid.tokens * case.heads * case.head_dim
    needed = OPERANDS * numbers * torch.empty((), dtype=case.dtype).element_size()
    on_gpu = case.device.type == "cuda"
    free = torch.cuda.mem_get_info(case.device)[0] if on_gpu else psutil.virtual_memory().available
    if needed <= free:
        return
    origins = [
        options.where(name) for name in ("batch", "frame_tokens", "latent_frames", "heads", "head_dim", "preset")
    ]
    raise EvditError(
        f"{case.grid.tokens:,} tokens x {case.heads} heads x {case.head_dim}, batch {case.batch}, need about "
        f"{needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: all operands must fit the device",
        where=next(filter(None, origins), None),
        next_steps=LESS_MEMORY,
        exit_code=OUT_OF_MEMORY,
    )


def command_of(options: BenchAttentionOptions) -> str:
    """The command line that asks for the same: flags as they were given, other keys as --set."""
    parts = ["evdit bench attention"]
    for key, origin in options.origins.items():
        if origin.startswith("--"):
            parts.append(origin)
        else:
            parts.append(setting(f"bench.attention.{key}", getattr(options, key)))
    return " ".join(parts)
