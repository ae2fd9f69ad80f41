"""Measure a whole denoising step at full size with random weights: the work of `evdit bench model`.

Rows are kept when they are measured, so the same command goes on with those that are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vdit_cli.artifacts.atomic import write_json, write_text
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.attention.bind import KERNELS
from vdit_cli.backbones.devices import pick_device, pick_dtype
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.bench.facts import machine_facts, package_versions, today
from vdit_cli.bench.failing import check_measured
from vdit_cli.bench.measuring import free_memory
from vdit_cli.bench.model_rows import COMPILED, EAGER, PLAIN, StepFolder, StepRow
from vdit_cli.bench.model_sizes import DENSE, ModelSize, Plans, lengths_of, plans_of, size_of
from vdit_cli.bench.model_tables import (
    PART_COLUMNS,
    VIDEO_COLUMNS,
    WHOLE_COLUMNS,
    as_markdown,
    draw_lengths,
    step_table,
)
from vdit_cli.bench.steps import BareBackbone, Timing, Variant, matrix_peak, measure_step
from vdit_cli.bench.videos import other_parts, video_rows, whole_video
from vdit_cli.errors import ENVIRONMENT, EvditError, Interrupted, setting, unknown_name
from vdit_cli.knobs import deciding
from vdit_cli.reader import kept, read_object
from vdit_cli.recipe import BenchModelOptions
from vdit_cli.sampling.compiling import why_not
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Progress

RESULTS_SCHEMA = "evdit.bench-model/1"
RESULTS, MARKDOWN, PICTURE, ROWS, PARTS = "results.json", "results.md", "lengths.png", "rows", "parts.json"
PEAK_SCHEMA, PEAK = "evdit.bench-peak/1", "peak.json"
PARTS_SCHEMA = "evdit.bench-parts/1"


def bench_model(options: BenchModelOptions, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Measure all steps that the options ask for into the run `out` and return what is in its results.json.

    Without `out` the run is `runs/<date>-bench-model-<preset>`; one that is done already is read and not measured.
    Raises EvditError for names, sizes and devices that can't be, and Interrupted after Ctrl-C with all rows kept.
    """
    size = size_of(options)
    plans, lengths = plans_of(options, size), lengths_of(options)
    if options.kernel not in ("auto", *KERNELS):
        raise unknown_name("kernel", options.kernel, ("auto", *KERNELS), where=options.where("kernel"))
    device = pick_device(options.device)
    if device.type not in ("cpu", "cuda"):
        rule = f"{device} can't be measured: there is a clock for cpu and cuda"
        raise EvditError(rule, where=options.where("device"), next_steps=["--device cpu"], exit_code=ENVIRONMENT)
    dtype = pick_dtype(options.dtype, device)
    ways, remarks = ways_of(options, device)
    run = RunDir.start(out, request_for(options, size, device, dtype))
    if run.is_done():
        progress.say(f"{run.path} is done already")
        return read_object(dict[str, Any], run.path / RESULTS, "result", RESULTS_SCHEMA)
    progress.say(f"rows are kept in {run.path}")
    with run:
        bench = ModelBench(options, size, device, dtype, run.path, progress)
        return bench.results(run, plans, lengths, ways, remarks)


def ways_of(options: BenchModelOptions, device: torch.device) -> tuple[tuple[str, ...], list[str]]:
    """Of eager and compiled, what is timed, and why not where a machine can't compile.

    Raises EvditError (exit 3) where compiled blocks were asked for and can't be.
    """
    on_gpu = device.type == "cuda"
    if options.compile == "none" or (options.compile == "auto" and not on_gpu):
        return (EAGER,), []
    reason = why_not(on_gpu)
    if reason is not None and options.compile != "auto":
        raise EvditError(
            f"this machine can't compile: {reason}",
            where=options.where("compile"),
            next_steps=["--compile none"],
            exit_code=ENVIRONMENT,
        )
    if reason is not None:
        return (EAGER,), [f"Compiled blocks were not measured: {reason}."]
    return ((COMPILED,) if options.compile == "blocks" else (EAGER, COMPILED)), []


def request_for(options: BenchModelOptions, size: ModelSize, device: torch.device, dtype: torch.dtype) -> Request:
    """What decides the run: the options, and the machine and torch that numbers are of, for rows must not mix."""
    values = deciding(options)
    values |= {"dtype": str(dtype).removeprefix("torch."), "device": device.type, "torch": torch.__version__}
    values["machine"] = machine_facts(device)["kind"]
    return Request("bench-model", size.name, values, origins=dict(options.origins))


def variants_of(
    options: BenchModelOptions, size: ModelSize, plans: Plans, lengths: Sequence[int], ways: Sequence[str]
) -> tuple[list[Variant], list[Variant]]:
    """The steps of the size, eager ones before compiled ones, and those of the lengths, in the last of the ways."""
    branches = {"both": (False, True), "kept": (True,), "distilled": (False,)}[options.guidance]
    frames = size.grid.frames
    steps = [Variant(frames, DENSE, plans[DENSE], PLAIN, guided) for guided in branches]
    for way in ways:
        steps += [Variant(frames, plan, masks, way, guided) for guided in branches for plan, masks in plans.items()]
    by_length = []
    for each in lengths:
        sparse = TileMask.parse(f"{options.global_frames}:{each - options.global_frames}", each)
        for plan, mask in ((DENSE, TileMask.dense(each)), (sparse.name, sparse)):
            by_length.append(Variant(each, plan, (mask,) * size.layers, ways[-1], branches[0]))
    return steps, by_length


class ModelBench:
    """One run's measuring; the transformer is made when the first missing row needs it."""

    def __init__(
        self,
        options: BenchModelOptions,
        size: ModelSize,
        device: torch.device,
        dtype: torch.dtype,
        path: Path,
        progress: Progress,
    ) -> None:
        self.options, self.size, self.device, self.dtype = options, size, device, dtype
        self.path, self.progress = path, progress
        self.kept = StepFolder(path / ROWS)
        self._backbone: BareBackbone | None = None

    @property
    def backbone(self) -> BareBackbone:
        """The transformer, made if it is not."""
        if self._backbone is None:
            self.progress.say(f"making {self.size.name} on {self.device} with random weights")
            self._backbone = BareBackbone(self.size, self.device, self.dtype, self.options.seed, self.progress.say)
        return self._backbone

    def results(
        self, run: RunDir, plans: Plans, lengths: Sequence[int], ways: Sequence[str], remarks: list[str]
    ) -> dict[str, Any]:
        """Measure what is missing, then write results.json, results.md and the picture; may raise BenchFailed then."""
        peak = self.peak()
        timing = Timing(self.options.seconds, self.options.least_repeats, peak["tflops"])
        steps, by_length = variants_of(self.options, self.size, plans, lengths, ways)
        self.progress.stage(self.size.name, len(steps) + len(by_length))
        rows = [self.row(variant, timing) for variant in steps]
        length_rows = [self.row(variant, timing) for variant in by_length]
        with torch.device("meta"):
            parameters = sum(each.numel() for each in OpenSoraT2V(self.size.config).parameters())
        results: dict[str, Any] = {
            "schema": RESULTS_SCHEMA,
            "command": command_of(self.options),
            "date": today(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "machine": machine_facts(self.device),
            "versions": package_versions(),
            "matrix_side": peak["side"],
            "peak_tflops": peak["tflops"],
            "parameters": parameters,
            "global_frames": self.options.global_frames,
            "remarks": remarks,
            "tables": {"steps": step_table(self.title, rows)},
        }
        if length_rows:
            title = f"a step against the length, {self.options.global_frames} global frames"
            results["tables"]["lengths"] = step_table(title, length_rows)
        if self.options.videos and any(row.ms is not None for row in rows):
            results["tables"] |= self.video_tables(plans, rows)
        self.write(run, results)
        every = [(row.ms, row.note) for row in (*rows, *length_rows)]
        check_measured(every, results, run.path / RESULTS, ["--layers 1", "--heads 1", "fewer --frame-tokens"])
        return results

    @property
    def title(self) -> str:
        """The size in one line."""
        size = self.size
        grid = f"{size.grid.tokens:,} tokens ({size.grid})"
        return f"{size.name}: {grid}, {size.layers} layers of {size.heads} heads x {size.head_dim}"

    def row(self, variant: Variant, timing: Timing) -> StepRow:
        """The kept row of a variant, or a measured one. Raises Interrupted where the person asked to stop before it."""
        found = self.kept.read(variant.frames, variant.plan, variant.way, variant.guided)
        if found is None:
            if self.progress.should_stop():
                said = "stopped: the rows that were measured are kept"
                raise Interrupted(said, next_steps=["the same command again"])
            found = measure_step(self.backbone, variant, self.options.kernel, timing)
            self.kept.keep(found)
        self.progress.advance(f"{variant.way} {variant.plan}")
        return found

    def peak(self) -> dict[str, Any]:
        """The matrix peak of this run, measured once."""
        file = self.path / PEAK
        found = kept(dict[str, float], file, "peak", PEAK_SCHEMA)
        if found is None:
            side, tflops = matrix_peak(self.device, self.dtype, self.options.seconds, self.options.least_repeats)
            found = {"side": side, "tflops": tflops}
            write_json(file, {"schema": PEAK_SCHEMA, **found})
        return found

    def video_tables(self, plans: Plans, rows: Sequence[StepRow]) -> dict[str, Any]:
        """Seconds a video, one run whole, and the parts beside denoising, the latter two kept like rows."""
        file = self.path / PARTS
        found = kept(dict[str, Any], file, "part of a table", PARTS_SCHEMA)
        if found is None:
            whole = whole_video(self.backbone, plans, rows, self.options.kernel)
            self._backbone = None  # its place is needed
            free_memory(self.device)
            repeats = (self.options.seconds, self.options.least_repeats)
            parts = other_parts(self.size, self.device, self.dtype, *repeats)
            found = {"whole": whole, "parts": parts}
            write_json(file, {"schema": PARTS_SCHEMA, **found})
        whole_rows = [] if found["whole"] is None else [found["whole"]]
        videos = video_rows(self.size, plans, rows)
        return {
            "videos": {
                "title": "seconds of denoising a video = steps x step",
                "columns": VIDEO_COLUMNS,
                "rows": videos,
            },
            "whole": {"title": "one video run whole", "columns": WHOLE_COLUMNS, "rows": whole_rows},
            "parts": {"title": "beside denoising", "columns": PART_COLUMNS, "rows": found["parts"]},
        }

    def write(self, run: RunDir, results: dict[str, Any]) -> None:
        """The run's files and its outputs."""
        write_json(run.path / RESULTS, results)
        write_text(run.path / MARKDOWN, as_markdown(results))
        roles = [("results", RESULTS), ("markdown", MARKDOWN)]
        if draw_lengths(results, run.path / PICTURE):
            roles.append(("picture", PICTURE))
        for role, name in roles:
            run.add_output(role, name)


def command_of(options: BenchModelOptions) -> str:
    """The command line that asks for the same: flags as they were given, other keys as --set."""
    parts = ["evdit bench model"]
    for key, origin in options.origins.items():
        if origin.startswith("--"):
            parts.append(origin)
        else:
            parts.append(setting(f"bench.model.{key}", getattr(options, key)))
    return " ".join(parts)
