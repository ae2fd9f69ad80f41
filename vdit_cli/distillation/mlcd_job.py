"""A distillation as it was asked for, checked before any weight is loaded: options, data, models and times fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from vdit_cli.artifacts.atomic import free_name
from vdit_cli.artifacts.run_dir import Request
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.artifacts.video_file import check_encoder
from vdit_cli.attention.bind import Attend
from vdit_cli.backbones.devices import pick_device
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import INDEX, Clips
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.fitting import check_shard, number_format
from vdit_cli.distillation.mlcd_networks import Pair, open_pair
from vdit_cli.distillation.mlcd_segments import check_segments, segments_of
from vdit_cli.errors import EvditError, quoted
from vdit_cli.knobs import flat
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.sampling.announcement import counted, masks_told, say_options
from vdit_cli.sampling.plans import AUTO, check_kernel, find_plan
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

HOW = (
    "device",
    "kernel",
    "compile",
    "shard",
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
    "clips",
    "held_out",
    "steps",
    "milestones",
    "guidance",
    "teacher_guidance",
    "target",
    "lora_rank",
    "adam",
    "seed",
    "plan",
    "teacher_weights",
    "student_weights",
)
"""Options that shape the state or the result of a run: it can't go on with others, even where one insists."""


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
    ranks: Ranks

    def data_told(self) -> str:
        """How much data there is, and what of it is trained on where that is not the rest."""
        first = f"the first {self.options.clips} of " if self.options.clips else ""
        return f"{first}{len(self.clips)} ({self.options.held_out} held out)"

    @property
    def teacher_guidance(self) -> float:
        """w of the teacher, or of a student that keeps its guidance."""
        own, asked = self.pair.teacher.defaults.guidance, self.options.teacher_guidance
        return own if asked is None else asked

    def sampler(self, steps: int) -> Sampler:
        """How a student of so many steps is sampled."""
        milestones = segments_of(self.options, steps, self.schedule.timesteps).sampled
        return Sampler("milestones", milestones, 1.0 if self.options.guidance == "distilled" else self.teacher_guidance)

    @property
    def trained(self) -> int:
        """How many clips are trained on, from the first."""
        return self.options.clips or len(self.clips) - self.options.held_out

    def spec(self, steps: int, guidance: float, timesteps: Sequence[int] = ()) -> SampleSpec:
        """The previews' sampling at the size of the data; a start's own `timesteps` are not its student's."""
        size, laid_out = self.clips.size, ",".join(map(str, timesteps)) or None
        return SampleSpec(size["video_frames"], size["height"], size["width"], steps, guidance, "milestones", laid_out)


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


def check_options(options: DistillMlcdOptions, ranks: Ranks = ALONE) -> None:
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
    check_parts(options, ranks.count)
    check_shard(options)
    if options.shard == "full" and options.target == "average":
        raise EvditError(
            "shard=full can't go with target=average: the target's weights have no network that gathers them",
            where=options.where("target") or options.where("shard"),
            next_steps=["--set distill_mlcd.target=student", "--set distill_mlcd.shard=none"],
        )


def check_parts(options: DistillMlcdOptions, ranks: int) -> None:
    """Raise EvditError (2) where a batch has fewer samples than `ranks` ranks have parts."""
    batch, parts = options.batch_size, options.accumulation
    if batch >= ranks * parts:
        return
    need = counted(parts, "part") if ranks == 1 else f"{ranks} ranks of {counted(parts, 'part')} each"
    raise EvditError(
        f"batch_size is {batch}: {need} need at least {counted(ranks * parts, 'clip')}",
        where=options.where("accumulation") or options.where("batch_size") or f"{ranks} ranks (--gpus, torchrun)",
        next_steps=[
            f"--set distill_mlcd.batch_size={ranks * parts}",
            *([f"--set distill_mlcd.accumulation={batch // ranks}"] if parts > 1 and batch >= ranks else []),
            *([f"--gpus {batch // parts}"] if ranks > 1 and batch >= parts else []),
            *(["--gpus 1 --set distill_mlcd.accumulation=1"] if batch < min(ranks, parts) else []),
        ],
    )


def check_times(options: DistillMlcdOptions, counts: Sequence[int], timesteps: int) -> None:
    """Raise EvditError (2) where students of `counts` steps, or the teacher in each of these, need more `timesteps`."""
    steps, points = max(counts), max(options.teacher_points)
    most = timesteps // steps
    if points <= most:
        return
    if not most:
        raise EvditError(
            f"steps is {options.steps!r}: the noise schedule has {timesteps} timesteps",
            where=options.where("steps") or "distill_mlcd.steps",
            next_steps=["--steps 20"],
        )
    fitting = [min(each, most) for each in options.teacher_points]
    fitting = fitting if options.teacher_shares else list(dict.fromkeys(fitting))
    raise EvditError(
        f"{steps} steps of {points} teacher points are {steps * points} points: the noise schedule has {timesteps} "
        "timesteps",
        where=options.where("teacher_points") or options.where("steps") or "distill_mlcd.teacher_points",
        next_steps=[
            f"--set distill_mlcd.teacher_points=[{','.join(map(str, fitting))}]",
            *([f"--steps {timesteps // points}"] if points <= timesteps else []),
        ],
    )


def check_clips(options: DistillMlcdOptions, clips: Clips) -> None:
    """Raise EvditError (2) where more clips are to be trained on than are not held out."""
    most = len(clips) - options.held_out
    if options.clips is not None and options.clips > most:
        raise EvditError(
            f"clips is {options.clips}: {clips.folder} holds {len(clips)} clips, {options.held_out} of them held out",
            where=options.where("clips") or "distill_mlcd.clips",
            next_steps=[f"--set distill_mlcd.clips={most}"],
        )


def request_of(job: Job) -> Request:
    """What decides the run: the options but for HOW, as they were resolved, the data, and all weights by digest."""
    options = job.options
    values = {key: value for key, value in flat(options) if key not in HOW}
    # A digest reads a whole model: without a checkpoint the student is the teacher, and its files are not read again.
    values |= {
        "plan": job.plan.digest if job.plan else None,
        "teacher_weights": job.pair.teacher.weights_digest,
        "student_weights": job.pair.student.weights_digest if options.checkpoint else None,
    }
    inputs = {"data": Path(options.data or "") / INDEX}
    # Of several students the later ones start from the earlier: with a longer first one they would have to begin anew.
    fixed, length = (FIXED, "iterations") if len(job.counts) == 1 else ((*FIXED, "iterations"), None)
    return Request("distill-mlcd", options.model, values, inputs, dict(options.origins), fixed=fixed, length=length)


def prepare(options: DistillMlcdOptions, counts: Sequence[int], clips: Clips, ranks: Ranks, progress: Progress) -> Job:
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
    check_times(options, counts, schedule.timesteps)
    check_segments(options, counts, schedule.timesteps)
    for steps in counts:
        for points in options.teacher_points:
            segments_of(options, steps, schedule.timesteps, points)
    spec = SampleSpec(size["video_frames"], size["height"], size["width"], 1, 1.0, "milestones")
    plan = find_plan(options.masks, pair.student, spec, options.allow_other_weights)
    previews, held_out = min(options.previews, len(clips)), min(options.held_out, len(clips) // 8)
    options = replace(options, previews=previews, held_out=held_out)
    check_clips(options, clips)
    return Job(options, tuple(counts), clips, pair, None if plan.is_dense else plan, schedule, device, ranks)


def announce(job: Job, progress: Progress) -> None:
    """Say what will be trained, which options were set, and what of them has no effect or looks like a mistake."""
    options, teacher, device, counts = job.options, job.pair.teacher, job.device, job.counts
    students = "a student" if len(counts) == 1 else f"{len(counts)} students"
    progress.say(
        f"{teacher.name}: {students} of {' then '.join(map(str, counts))} steps, {options.iterations} iterations of "
        f"{counted(options.batch_size, 'clip')} out of {job.data_told()}, {device} "
        f"{number_format(options.precision, device)}, {masks_told(job.plan)}"
        + (f", {job.ranks.count} ranks" if job.ranks.count > 1 else "")
    )
    say_options("distill_mlcd", options, {"teacher_guidance": job.teacher_guidance}, teacher.name, progress)
    for line in (*idle_options(options), *doubts(job)):
        progress.say(f"warning: {line}")


def doubts(job: Job) -> list[str]:
    """What of the start and the numbers asked for will hardly make a good student."""
    start, options = job.pair.student.defaults, job.options
    told = []
    if options.checkpoint and start.scheduler == "milestones":
        if start.steps < job.counts[0]:
            told.append(f"{options.checkpoint} is a student of {start.steps} steps: it starts one of {job.counts[0]}")
        if start.guidance == 1.0 and options.guidance == "kept":
            told.append(f"{options.checkpoint} has its guidance distilled in: guidance=kept would guide it twice")
    if options.milestones and options.milestones[0] < job.schedule.timesteps - 1:
        told.append(
            f"milestones begin at {options.milestones[0]}: videos begin as pure noise, and the student learns from "
            "clips that still show a little there"
        )
    for key in ("learning_rate", "weight_cap", "clip"):
        if getattr(options, key) == 0:
            told.append(f"{options.where(key)} trains nothing")
    return told


def lineage_of(pair: Pair, options: DistillMlcdOptions) -> tuple[str, ...]:
    """Digests of the weights that the student comes from, nearest first: what starts it, then its teacher."""
    start = (pair.student.weights_digest, *pair.student.lineage) if options.checkpoint else ()
    return tuple(dict.fromkeys((*start, pair.teacher.weights_digest, *pair.teacher.lineage)))


def bind_student(job: Job, plan: MaskPlan) -> tuple[Attend, ...]:
    """Put the plan's masks on the student, bound for what runs: part of a batch, in the type of matrix products."""
    options, device = job.options, job.device
    dtype = torch.bfloat16 if number_format(options.precision, device) == "bfloat16" else None
    part = math.ceil(options.batch_size / options.accumulation)
    return job.pair.student.apply_plan(plan, part, options.kernel, needs_grad=True, dtype=dtype)
