"""A distillation as it was asked for, checked before any weight is loaded: options, data, models and times fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vdit_cli.artifacts.run_dir import Request
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.devices import pick_device
from vdit_cli.data.shards import INDEX, Clips
from vdit_cli.diffusion.schedules import NoiseSchedule, ScheduleForm
from vdit_cli.distillation import student_job
from vdit_cli.distillation.fitting import number_format
from vdit_cli.distillation.mlcd_segments import check_segments, segments_of
from vdit_cli.distillation.student_job import (
    StudentJob,
    check_data,
    check_student_options,
    fitted_to,
    idle_told,
    trains_nothing,
)
from vdit_cli.distillation.student_networks import Pair, open_pair
from vdit_cli.errors import EvditError, setting
from vdit_cli.knobs import deciding
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.reader import MOST
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.sampling.announcement import counted, masks_told, say_options
from vdit_cli.sampling.plans import AUTO, find_plan
from vdit_cli.timing import Progress

FIXED = (
    *student_job.FIXED,
    "steps",
    "milestones",
    "guidance",
    "teacher_guidance",
    "target",
    "teacher_weights",
    "student_weights",
)
"""Options that shape the state or the result of a run: it can't go on with others, even where one insists."""


@dataclass(frozen=True)
class Job(StudentJob):
    """A step distillation that was checked: data and models fit each other, no weight is loaded yet."""

    options: DistillMlcdOptions
    counts: tuple[int, ...]

    @property
    def teacher_guidance(self) -> float:
        """w of the teacher, or of a student that keeps its guidance."""
        own, asked = self.pair.teacher.defaults.guidance, self.options.teacher_guidance
        return own if asked is None else asked

    def sampler(self, steps: int) -> Sampler:
        """How a student of so many steps is sampled."""
        milestones = segments_of(self.options, steps, self.schedule.timesteps).sampled
        return Sampler("milestones", milestones, 1.0 if self.options.guidance == "distilled" else self.teacher_guidance)


def step_counts(options: DistillMlcdOptions) -> tuple[int, ...]:
    """The students' steps in order. Raises EvditError (2) for what is no count, or not fewer than the one before."""
    where = options.where("steps") or "distill_mlcd.steps"
    words = [word.strip() for word in options.steps.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 8 and 1 <= int(word) <= MOST for word in words):
        raise EvditError(
            f"steps is {options.steps!r}: it must be a whole number from 1 to {MOST}, or several with commas between",
            where=where,
            next_steps=["--steps 4", "--steps 20,8,4,2"],
        )
    counts = tuple(int(word) for word in words)
    if any(more <= fewer for more, fewer in zip(counts, counts[1:], strict=False)):
        points = max(options.teacher_points, default=1) * options.teacher_substeps
        most = ScheduleForm().num_train_timesteps // max(1, points)  # of the schedule itself nothing is known yet
        falling = ",".join(str(count) for count in sorted(set(counts), reverse=True) if count <= most)
        raise EvditError(
            f"steps is {options.steps!r}: each student must have fewer steps than the one before it",
            where=where,
            next_steps=[f"--steps {falling or max(1, most)}"],
        )
    return counts


def idle_options(options: DistillMlcdOptions) -> list[str]:
    """Options that were set and change nothing beside the others, each with the reason."""
    idle = {
        "truth_steps": "no clip is held out" if options.held_out == 0 else None,
        "null_share": "no caption is emptied where guidance is distilled" if options.guidance == "distilled" else None,
        "allow_other_weights": "there is no plan"
        if options.masks != AUTO and not Path(options.masks).exists()
        else None,
    }
    return idle_told(options, idle)


def check_options(options: DistillMlcdOptions, ranks: Ranks = ALONE) -> None:
    """Raise EvditError (2) for what no distillation takes, and for curricula whose lists differ."""
    check_student_options(options, ranks)
    points, shares, usual = options.teacher_points, options.teacher_shares, DistillMlcdOptions().teacher_points
    if not points or (shares and len(shares) != len(points)) or any(share <= 0 for share in shares):
        raise EvditError(
            f"{len(points)} teacher_points and {len(shares)} teacher_shares: there must be points, and a share above 0 "
            "for each of them or none at all",
            where=options.where("teacher_shares") or options.where("teacher_points") or "distill_mlcd.teacher_points",
            next_steps=[
                f"{setting('distill_mlcd.teacher_points', usual)} {setting('distill_mlcd.teacher_shares', [])}"
            ],
        )
    if options.shard == "full" and options.target == "average":
        raise EvditError(
            "shard=full can't go with target=average: the target's weights have no network that gathers them",
            where=options.where("target") or options.where("shard"),
            next_steps=["--set distill_mlcd.target=student", "--set distill_mlcd.shard=none"],
        )


def check_times(options: DistillMlcdOptions, counts: Sequence[int], timesteps: int) -> None:
    """Raise EvditError (2) where students of `counts` steps, or the teacher in each of these, need more `timesteps`."""
    steps, points, substeps = max(counts), max(options.teacher_points), options.teacher_substeps
    if steps * points * substeps <= timesteps:
        return
    if steps > timesteps:
        raise EvditError(
            f"steps is {options.steps!r}: the noise schedule has {timesteps} timesteps",
            where=options.where("steps") or "distill_mlcd.steps",
            next_steps=["--steps 20"],
        )
    if steps * points <= timesteps:
        raise EvditError(
            f"{steps} steps of {points} teacher points with {substeps} substeps each are {steps * points * substeps}: "
            f"the noise schedule has {timesteps} timesteps",
            where=options.where("teacher_substeps") or "distill_mlcd.teacher_substeps",
            next_steps=[setting("distill_mlcd.teacher_substeps", timesteps // (steps * points))],
        )
    most = max(1, timesteps // (steps * substeps))
    fitting = [min(each, most) for each in options.teacher_points]
    fitting = fitting if options.teacher_shares else list(dict.fromkeys(fitting))
    raise EvditError(
        f"{steps} steps of {points} teacher points are {steps * points} points: the noise schedule has {timesteps} "
        "timesteps",
        where=options.where("teacher_points") or options.where("steps") or "distill_mlcd.teacher_points",
        next_steps=[
            setting("distill_mlcd.teacher_points", fitting),
            *([f"--steps {timesteps // (points * substeps)}"] if points * substeps <= timesteps else []),
        ],
    )


def request_of(job: Job) -> Request:
    """What decides the run: the options that decide it, as they were resolved, the data, and all weights by digest."""
    options = job.options
    values = deciding(options)
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
    spec = check_data(options, clips, teacher)
    schedule = NoiseSchedule.from_config(teacher.scheduler_config)
    check_times(options, counts, schedule.timesteps)
    check_segments(options, counts, schedule.timesteps)
    for steps in counts:
        for points in options.teacher_points:
            segments_of(options, steps, schedule.timesteps, points)
    plan = find_plan(options.masks, pair.student, spec, options.allow_other_weights)
    options = fitted_to(clips, options)
    worn = None if plan.is_dense else plan
    return Job(options, clips, pair, worn, schedule, device, ranks, tuple(counts))


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
    told += trains_nothing(options, ("learning_rate", "weight_cap", "clip"))
    return told


def lineage_of(pair: Pair, options: DistillMlcdOptions) -> tuple[str, ...]:
    """Digests of the weights that the student comes from, nearest first: what starts it, then its teacher."""
    start = (pair.student.weights_digest, *pair.student.lineage) if options.checkpoint else ()
    return tuple(dict.fromkeys((*start, pair.teacher.weights_digest, *pair.teacher.lineage)))
