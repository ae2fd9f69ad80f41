"""Distil a student of few steps from a model: data and models checked first, then one student after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vdit_cli.artifacts.atomic import free_name
from vdit_cli.artifacts.receipt import Ran, Receipt, this_machine
from vdit_cli.artifacts.run_dir import DONE, Request, RunDir
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.artifacts.video_file import check_encoder
from vdit_cli.attention.bind import Attend
from vdit_cli.backbones.devices import pick_device
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import INDEX, Clips, open_data
from vdit_cli.diffusion.milestones import Milestones
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.checkpoints import check_goes_on
from vdit_cli.distillation.fitting import autocast, recompute_blocks
from vdit_cli.distillation.mlcd_card import student_card
from vdit_cli.distillation.mlcd_lesson import HeldClips, Lesson
from vdit_cli.distillation.mlcd_networks import (
    Learned,
    Pair,
    add_lora,
    bind_student,
    open_pair,
    trained_parameters,
    write_student,
)
from vdit_cli.distillation.mlcd_previews import Previews
from vdit_cli.distillation.mlcd_watch import Watch
from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.samples import SplitLoss
from vdit_cli.distillation.trainer import put_parameters, train
from vdit_cli.errors import EvditError, quoted
from vdit_cli.knobs import flat
from vdit_cli.recipe import DistillMlcdOptions
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.sampling.plans import AUTO, check_kernel, find_plan
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress, Stopwatch

STUDENT = "student"
HOW = (
    "device",
    "kernel",
    "compile",
    "accumulation",
    "gradient_checkpointing",
    "tensorboard",
    "keep_last",
    "log_every",
    "previews",
)
"""Options that change where and how the work is done, not what is learnt: a run may be gone on with under others."""
FIXED = (
    "model",
    "text_encoder",
    "checkpoint",
    "masks",
    "data",
    "held_out",
    "steps",
    "guidance",
    "teacher_guidance",
    "target",
    "lora_rank",
    "adam",
    "seed",
)
"""Options that shape the state or the result of a run: it can't go on with others, even where one insists."""
LESS_MEMORY = (
    "--set distill_mlcd.gradient_checkpointing=true",
    "--set distill_mlcd.accumulation=4",
    "--lora-rank 64",
)


@dataclass(frozen=True)
class Job:
    """A distillation that was checked: data and models fit each other, no weight is loaded yet."""

    options: DistillMlcdOptions
    counts: tuple[int, ...]
    clips: Clips
    pair: Pair
    plan: MaskPlan | None
    schedule: NoiseSchedule
    device: torch.device

    @property
    def teacher_guidance(self) -> float:
        """w of the teacher, or of a student that keeps its guidance."""
        own, asked = self.pair.teacher.defaults.guidance, self.options.teacher_guidance
        return own if asked is None else asked

    def sampler(self, steps: int) -> Sampler:
        """How a student of so many steps is sampled."""
        milestones = Milestones(steps, 1, self.schedule.timesteps).sampled
        return Sampler("milestones", milestones, 1.0 if self.options.guidance == "distilled" else self.teacher_guidance)

    def spec(self, steps: int, guidance: float) -> SampleSpec:
        """The previews' sampling at the size of the data."""
        size = self.clips.size
        return SampleSpec(size["video_frames"], size["height"], size["width"], steps, guidance, "milestones")


def distill_mlcd(
    options: DistillMlcdOptions, out: Path | None, progress: Progress, allow_changed: bool = False
) -> Path:
    """Train, or go on training, a student in the run `out`, and return its folder, which `--checkpoint` takes.

    With several step counts each student starts the next, in `out/steps-N`. Without `out` the run is
    `runs/<date>-distill-mlcd-<model>`. With `allow_changed` a run that was begun with other values goes on with these.
    Raises EvditError (2) for what does not fit and for such a run otherwise, (1) where a student collapses, and
    Interrupted after saving.
    """
    counts = step_counts(options)
    check_options(options)
    clips = open_data(options.data or "")
    request = request_of(options)
    if out is not None and (out / "run.json").is_file():
        begun = RunDir.start(out, request, allow_changed)
        if begun.is_done():
            return _done_already(begun, progress)
    for line in idle_options(options):
        progress.say(f"warning: {line}")
    job = prepare(options, counts, clips, progress)
    run = RunDir.start(out, request, allow_changed)
    if run.is_done():
        return _done_already(run, progress)
    with run:
        run.manifest["lineage"] = list(lineage_of(job.pair, options))
        clock = Stopwatch()
        with PeakMemory(job.device) as memory, out_of_memory_told("train", list(LESS_MEMORY)):
            attends = _students(job, run, clock, progress)
        _receipt(job, request, attends, clock, memory.peak).write(run.path / "receipt.json")
    return run.find("transformer")


def _done_already(run: RunDir, progress: Progress) -> Path:
    progress.say(f"{run.path} is done already")
    return run.find("transformer")


def step_counts(options: DistillMlcdOptions) -> tuple[int, ...]:
    """The students' steps in order. Raises EvditError (2) for what is no count, or not fewer than the one before."""
    where = options.where("steps") or "distill_mlcd.steps"
    words = [word.strip() for word in options.steps.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) >= 1 for word in words):
        raise EvditError(
            f"steps is {options.steps!r}: it must be a whole number of at least 1, or several with commas between them",
            where=where,
            next_steps=["--steps 4", "--steps 20,8,4,2"],
        )
    counts = tuple(int(word) for word in words)
    if any(more <= fewer for more, fewer in zip(counts, counts[1:], strict=False)):
        falling = ",".join(str(count) for count in sorted(set(counts), reverse=True))
        raise EvditError(
            f"steps is {options.steps!r}: each student must have fewer steps than the one before it",
            where=where,
            next_steps=[f"--steps {falling}"],
        )
    return counts


def idle_options(options: DistillMlcdOptions) -> list[str]:
    """Options that were set and change nothing beside the others, each with the reason."""
    idle = {
        "null_share": "no caption is emptied where guidance is distilled" if options.guidance == "distilled" else None,
        "collapse_factor": "without previews nothing is watched" if options.previews == 0 else None,
        "allow_other_weights": "there is no plan"
        if options.masks != AUTO and not Path(options.masks).exists()
        else None,
    }
    return [f"{options.where(key)} has no effect: {why}" for key, why in idle.items() if why and options.where(key)]


def check_options(options: DistillMlcdOptions) -> None:
    """Raise EvditError (2) for missing data, curricula whose lists differ, unknown kernels, and shards."""
    check_kernel(options.kernel)
    if options.previews:
        check_encoder(".mp4")
    if not options.data:
        place = free_name(Path("data"))
        raise EvditError(
            "there is no data to train on: --data names a folder that evdit prepare-data made",
            where="--data",
            next_steps=[
                f"evdit prepare-data --model {quoted(options.model)} --source shapes -o {place}",
                f"--data {place}",
            ],
        )
    points, shares = options.teacher_points, options.teacher_shares
    if not points or (shares and len(shares) != len(points)) or any(share <= 0 for share in shares):
        raise EvditError(
            f"{len(points)} teacher_points and {len(shares)} teacher_shares: there must be points, and a share above 0 "
            "for each of them or none at all",
            where=options.where("teacher_shares") or options.where("teacher_points") or "distill_mlcd.teacher_points",
            next_steps=["--set distill_mlcd.teacher_points=[2,5,25] --set distill_mlcd.teacher_shares=[]"],
        )
    if options.shard != "none":
        raise EvditError(
            "this distillation runs on one process: the model can't be shared out among several",
            where=options.where("shard") or "distill_mlcd.shard",
            next_steps=["--set distill_mlcd.shard=none --lora-rank 64"],
        )


def request_of(options: DistillMlcdOptions) -> Request:
    """What decides the run: the options but for HOW, the data's index, and what starts and masks the student."""
    values = {key: value for key, value in flat(options) if key not in HOW}
    inputs = {"data": Path(options.data or "") / INDEX}
    for role, given in (("checkpoint", options.checkpoint), ("masks", options.masks)):
        path = Path(given or "")
        if given and path.exists():
            inputs[role] = path / "run.json" if (path / "run.json").is_file() else path
    # Of several students the later ones start from the earlier: with a longer first one they would have to begin anew.
    fixed, length = (FIXED, "iterations") if len(step_counts(options)) == 1 else ((*FIXED, "iterations"), None)
    return Request("distill-mlcd", options.model, values, inputs, dict(options.origins), fixed=fixed, length=length)


def prepare(options: DistillMlcdOptions, counts: Sequence[int], clips: Clips, progress: Progress) -> Job:
    """Open the models and hold data, size, times and masks against them. Raises EvditError (2) for misfits."""
    device = pick_device(options.device)
    pair = open_pair(options, device, progress)
    teacher = pair.teacher
    clips.facts.check(DataFacts.of(teacher), str(clips.folder), options.model)
    size = clips.size
    shape = teacher.latent_shape(size["video_frames"], size["height"], size["width"])
    if shape != clips.latent_shape or not len(clips):
        raise EvditError(
            f"{clips.folder} holds {len(clips)} clips of latents {list(clips.latent_shape)}: {teacher.name} needs "
            f"clips of {list(shape)}",
            where=f"--data {clips.folder}",
            next_steps=[
                f"evdit prepare-data --model {quoted(options.model)} --source shapes "
                f"-o {quoted(free_name(clips.folder))}"
            ],
        )
    schedule = NoiseSchedule.from_config(teacher.scheduler_config)
    for steps in counts:
        for points in options.teacher_points:
            Milestones(steps, points, schedule.timesteps)
    spec = SampleSpec(size["video_frames"], size["height"], size["width"], 1, 1.0, "milestones")
    plan = find_plan(options.masks, pair.student, spec, options.allow_other_weights)
    options = replace(options, previews=min(options.previews, len(clips)), held_out=held_out(options, len(clips)))
    return Job(options, tuple(counts), clips, pair, None if plan.is_dense else plan, schedule, device)


def held_out(options: DistillMlcdOptions, clips: int) -> int:
    """How many of the `clips` are not trained on: what was asked for, at most an eighth of them unless asked for."""
    if not options.where("held_out"):
        return min(options.held_out, clips // 8)
    if options.held_out >= clips:
        raise EvditError(
            f"{options.held_out} clips are to be held out of {clips}: none would be left to train on",
            where=options.where("held_out"),
            next_steps=[f"--set distill_mlcd.held_out={clips // 8}", "more clips"],
        )
    return options.held_out


def lineage_of(pair: Pair, options: DistillMlcdOptions) -> tuple[str, ...]:
    """Digests of the weights that the student comes from, nearest first: what starts it, then its teacher."""
    start = (pair.student.weights_digest, *pair.student.lineage) if options.checkpoint else ()
    return tuple(dict.fromkeys((*start, pair.teacher.weights_digest, *pair.teacher.lineage)))


def _students(job: Job, run: RunDir, clock: Stopwatch, progress: Progress) -> tuple[Attend, ...]:
    """Train every student in order and write its folder; returns what the student's sites ran on."""
    options, pair = job.options, job.pair
    with clock.phase("load"), pair.teacher.resident("transformer"), pair.student.resident("transformer"):
        pair.teacher.trainable(())
        attends = bind_student(pair.student, job.plan, options, job.device) if job.plan else ()
        if options.lora_rank:
            add_lora(pair.student, options.lora_rank, options.seed)
        if options.gradient_checkpointing:
            recompute_blocks(pair.student.blocks())
        if options.compile == "blocks" or (options.compile == "auto" and job.device.type == "cuda"):
            for backbone in (pair.teacher, pair.student):
                backbone.compile_blocks()
        clips = HeldClips(job.clips, job.device)
    for steps in job.counts:
        folder = run.path if len(job.counts) == 1 else run.path / f"steps-{steps}"
        if run.before is not None and steps == job.counts[-1]:
            check_goes_on(folder / "checkpoints", options.iterations, run.before["state"] == DONE)
        _student(job, clips, steps, folder, clock, progress)
        role = "transformer" if steps == job.counts[-1] else f"transformer-{steps}"
        run.add_output(role, (folder / STUDENT).relative_to(run.path).as_posix())
    return attends


def _student(
    job: Job,
    clips: HeldClips,
    steps: int,
    folder: Path,
    clock: Stopwatch,
    progress: Progress,
) -> None:
    """Train the student of `steps` steps from what it is now, write its folder, and leave it as it was kept."""
    options, pair = job.options, job.pair
    learned = Learned(trained_parameters(pair.student), options.target == "average")
    optimisers = build_optimisers(
        learned,
        lambda name, parameter: False,
        matrix_rate=0.0,
        rate=options.learning_rate,
        betas=(0.9, 0.99),
        matrix_decay=0.0,
        adam=options.adam,
    )
    label = f"student of {steps} steps" if steps > 1 else "student of 1 step"
    schedule = job.schedule.to(job.device)
    lesson = Lesson(options, pair, learned, clips, schedule, steps, job.teacher_guidance, options.held_out)
    with clock.phase(f"train {steps}"):
        trained = train(
            learned,
            optimisers,
            SplitLoss(lesson.of),
            options,
            label,
            options.seed,
            folder,
            job.device,
            progress,
            follow=learned.follow,
            held_out=lesson.held_out if options.held_out else None,
            watch=_watch(job, learned, steps, folder, label, progress) if options.previews else _see_nothing,
        )
    put_parameters(learned, trained.average)
    sampler = job.sampler(steps)
    card = student_card(options, pair.teacher.name, len(job.clips), sampler, folder / "metrics.jsonl")
    lineage = lineage_of(pair, options)
    write_student(pair.student, folder / STUDENT, learned.part("student"), sampler, card, lineage, job.plan)


def _see_nothing(iteration: int, average: Mapping[str, Tensor]) -> None:
    """Without previews nothing is watched."""


def _watch(job: Job, learned: Learned, steps: int, folder: Path, label: str, progress: Progress) -> Watch:
    options = job.options
    previews = Previews(
        job.pair,
        job.clips,
        folder / "previews",
        options.previews,
        options.seed,
        job.spec(steps, job.sampler(steps).guidance),
        job.spec(job.pair.teacher.defaults.steps, job.teacher_guidance),
        partial(autocast, options.precision, job.device),
        beside=(options.precision, job.plan.digest if job.plan else None),
    )
    return Watch(previews, learned, folder, label, options, progress)


def _receipt(job: Job, request: Request, attends: tuple[Attend, ...], clock: Stopwatch, peak: int) -> Receipt:
    """The receipt of the run: what was asked, what ran, and the last student's sampler."""
    sampler, device = job.sampler(job.counts[-1]), job.device
    kept = sum(attend.mask.kept_share for attend in attends) / len(attends) if attends else 1.0
    with autocast(job.options.precision, device):
        is_half = torch.is_autocast_enabled(device.type)
    return Receipt(
        asked=dict(request.values),
        ran=Ran(
            model=job.pair.teacher.name,
            weights=job.pair.teacher.weights_digest,
            device=str(device),
            dtype="bfloat16" if is_half else "float32",
            scheduler=sampler.scheduler,
            timesteps=sampler.timesteps,
            guidance=sampler.guidance,
            layers=tuple(attend.receipt() for attend in attends),
            kept_share=kept,
            skipped_share=1 - kept,
            masks=job.plan.masks_text() if job.plan else "none",
            plan=job.plan.digest if job.plan else None,
        ),
        seconds={phase: round(value, 4) for phase, value in clock.seconds.items()},
        peak_memory_bytes=peak,
        machine=this_machine((torch.cuda.get_device_name(device),) if device.type == "cuda" else ()),
        output=STUDENT,
    )
