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
from vdit_cli.diffusion.milestones import Milestones
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.fitting import autocast
from vdit_cli.distillation.mlcd_networks import Pair, open_pair
from vdit_cli.errors import EvditError, quoted
from vdit_cli.knobs import flat
from vdit_cli.recipe import DistillMlcdOptions
from vdit_cli.sampling.plans import AUTO, check_kernel, find_plan
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

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


def bind_student(job: Job, plan: MaskPlan) -> tuple[Attend, ...]:
    """Put the plan's masks on the student, bound for what runs: part of a batch, in the type of matrix products."""
    options, device = job.options, job.device
    with autocast(options.precision, device):
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    part = math.ceil(options.batch_size / options.accumulation)
    return job.pair.student.apply_plan(plan, part, options.kernel, needs_grad=True, dtype=dtype)
