"""What every distillation does around its loss: begins its run, trains, and says what ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vdit_cli.artifacts.changes import DONE, differences, has_unplaced, place
from vdit_cli.artifacts.receipt import Ran, Receipt, this_machine
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.attention.bind import Attend
from vdit_cli.backbones.base import Trainable
from vdit_cli.distillation.checkpoints import check_goes_on, newest_iteration
from vdit_cli.distillation.fitting import autocast, number_format
from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.previews import Previews
from vdit_cli.distillation.samples import LossTerms, Samples, SplitLoss
from vdit_cli.distillation.student_job import StudentJob
from vdit_cli.distillation.student_networks import Learned
from vdit_cli.distillation.trainer import put_parameters, train
from vdit_cli.distillation.watch import Watch
from vdit_cli.errors import setting
from vdit_cli.parallel.groups import Ranks
from vdit_cli.sampling.plans import fallbacks
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.timing import Progress, Stopwatch

STUDENT = "student"
"""The folder of a run that holds what it made."""


def begun(out: Path | None, request: Request, allow_changed: bool, ranks: Ranks) -> tuple[RunDir, bool]:
    """The run, which the first rank makes or goes on with and the others only know of, and whether it is done."""
    made: list[RunDir] = []

    def begin() -> str:
        made.append(RunDir.start(out, request, allow_changed))
        return json.dumps([str(made[0].path), made[0].is_done()])

    path, is_done = json.loads(ranks.from_first(begin))
    if made:
        return made[0], is_done
    return RunDir.open(path) if is_done else RunDir(Path(path), request.manifest()), is_done


def done_already(run: RunDir) -> str:
    """That a run is done, and what has become of it where it is being made longer, in words."""
    if run.since is None:
        return f"{run.path} is done already"
    longer = differences(run.manifest, run.since.manifest)
    section = run.manifest["command"].replace("-", "_")
    values = " ".join(setting(f"{section}.{key}", now) for key, (_, now) in longer.items())
    return (
        f"{run.path} is done already: its student of {run.manifest['values']['iterations']} iterations. It is being "
        f"made longer, which is {run.since.state()}: {values} goes on with that"
    )


def place_changes(run: RunDir, folder: Path, label: str, iterations: int, is_last: bool) -> None:
    """Note at which iteration of the student in `folder` other values that were insisted on take effect.

    Raises EvditError (2) where its newest checkpoint leaves them nothing to do.
    """
    if not has_unplaced(run.manifest):
        return
    done = newest_iteration(folder / "checkpoints")
    if run.before is not None and is_last:
        check_goes_on(folder / "checkpoints", done, iterations, run.before["state"] == DONE)
    if is_last or done < iterations:
        place(run.manifest, label, done)
        run.save()


def compile_asked(job: StudentJob, *backbones: Trainable) -> None:
    """Let the blocks of the backbones run compiled where options say so.

    Compiled blocks in shards ran once, on two GPUs: there only a person asks for them.
    """
    options = job.options
    is_auto = options.compile == "auto" and job.device.type == "cuda" and options.shard == "none"
    for backbone in backbones if is_auto or options.compile == "blocks" else ():
        backbone.compile_blocks()


def train_student(
    job: StudentJob,
    learned: Learned,
    loss_of: Callable[[Samples], LossTerms],
    held_out: Callable[[int], LossTerms],
    label: str,
    folder: Path,
    progress: Progress,
    watch: Callable[[int, Mapping[str, Tensor]], None],
) -> None:
    """Train what is learned from what it is now, or from its newest checkpoint, and leave it as it is to be kept."""
    options = job.options
    layers = (module for block in job.pair.student.blocks() for module in block.modules())
    matrices = {id(layer.weight) for layer in layers if isinstance(layer, nn.Linear)}
    optimisers = build_optimisers(
        learned,
        lambda name, parameter: options.muon_rate > 0 and id(parameter) in matrices,
        matrix_rate=options.muon_rate,
        rate=options.learning_rate,
        betas=(0.9, 0.99),
        matrix_decay=0.0,
        adam=options.adam,
    )
    trained = train(
        learned,
        optimisers,
        SplitLoss(loss_of),
        options,
        label,
        options.seed,
        folder,
        job.device,
        progress,
        ranks=job.ranks,
        follow=learned.follow,
        held_out=held_out if options.held_out else None,
        watch=watch if options.previews else _see_nothing,
    )
    put_parameters(learned, trained.average)


def _see_nothing(iteration: int, average: Mapping[str, Tensor]) -> None:
    """Without previews nothing is watched."""


def watch_of(
    job: StudentJob,
    learned: Learned,
    folder: Path,
    label: str,
    specs: tuple[SampleSpec, SampleSpec],
    cures: tuple[str, ...],
    progress: Progress,
) -> Watch:
    """The watch over a student's previews, sampled by `specs`, the student's and the teacher's."""
    options = job.options
    previews = Previews(
        job.pair,
        job.clips,
        folder / "previews",
        options.previews,
        options.seed,
        *specs,
        partial(autocast, options.precision, job.device),
        beside=(options.precision, job.plan.digest if job.plan else None),
        in_shards=options.shard == "full",
    )
    return Watch(previews, learned, folder, label, options, progress, job.ranks, cures)


def write_receipt(
    run: RunDir,
    job: StudentJob,
    request: Request,
    attends: tuple[Attend, ...],
    clock: Stopwatch,
    peak: int,
    sampled: tuple[str, Sequence[float], float],
) -> None:
    """Write the run's receipt: what was asked, what ran, and how the last student is sampled.

    `sampled` is its scheduler, its timesteps and its guidance.
    """
    device, (scheduler, timesteps, guidance) = job.device, sampled
    kept = mean_kept_share([attend.mask for attend in attends]) if attends else 1.0
    Receipt(
        asked=dict(request.values),
        ran=Ran(
            model=job.pair.teacher.name,
            weights=job.weights,
            device=str(device),
            dtype=number_format(job.options.precision, device),
            scheduler=scheduler,
            timesteps=tuple(timesteps),
            guidance=guidance,
            layers=tuple(attend.receipt() for attend in attends),
            kept_share=kept,
            skipped_share=1 - kept,
            fallbacks=tuple(fallbacks(attends, job.options.kernel)),
            masks=job.plan.masks_text() if job.plan else "none",
            plan=job.plan.digest if job.plan else None,
        ),
        seconds={phase: round(value, 4) for phase, value in clock.seconds.items()},
        peak_memory_bytes=peak,
        machine=this_machine((torch.cuda.get_device_name(device),) * job.ranks.count if device.type == "cuda" else ()),
        output=STUDENT,
    ).write(run.path / "receipt.json")
