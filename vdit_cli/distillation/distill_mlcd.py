"""Distil a student of few steps from a model: data and models checked first, then one student after another."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import astuple
from pathlib import Path

from vdit_cli.artifacts.changes import changes_within
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.attention.bind import Attend
from vdit_cli.data.shards import open_data
from vdit_cli.distillation.fitting import fit_model
from vdit_cli.distillation.held_clips import HeldClips
from vdit_cli.distillation.mlcd_card import student_card
from vdit_cli.distillation.mlcd_job import Job, announce, check_options, lineage_of, prepare, request_of, step_counts
from vdit_cli.distillation.mlcd_lesson import Lesson
from vdit_cli.distillation.segment_errors import FILE, SegmentError, error_lines, write_errors
from vdit_cli.distillation.student_job import bind_student
from vdit_cli.distillation.student_networks import Learned, add_lora, trained_parameters, write_student
from vdit_cli.distillation.student_run import (
    STUDENT,
    begun,
    compile_asked,
    done_already,
    place_changes,
    train_student,
    watch_of,
    write_receipt,
)
from vdit_cli.parallel.groups import joined
from vdit_cli.parallel.sharding import shard, whole_on_first
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.sampling.announcement import counted
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.sampling.plans import fallbacks
from vdit_cli.timing import Progress, Stopwatch


def distill_mlcd(
    options: DistillMlcdOptions, out: Path | None, progress: Progress, allow_changed: bool = False
) -> Path:
    """Train, or go on training, a student in the run `out`, and return its folder, which `--checkpoint` takes.

    With several step counts each student starts the next, in `out/steps-N`. Without `out` the run is
    `runs/<date>-distill-mlcd-<model>`. Of several ranks each computes its share of every batch, and the first one
    writes all files. With `allow_changed` a run that was begun with other values goes on with these. Raises EvditError
    (2) for what does not fit and for such a run otherwise, (1) where a student collapses, and Interrupted after saving.
    """
    with joined(options.device) as ranks:
        counts = step_counts(options)
        check_options(options, ranks)
        clips = open_data(options.data or "")
        job = prepare(options, counts, clips, ranks, progress)
        request = request_of(job)
        run, is_done = begun(out, request, allow_changed, ranks)
        if is_done:
            progress.say(done_already(run))
            return run.find("transformer")
        announce(job, progress)
        with run if ranks.is_first else nullcontext():
            ranks.wait()  # the first rank has cleared leftovers away, and nobody reads a checkpoint before
            run.manifest["lineage"] = list(lineage_of(job.pair, options))
            clock = Stopwatch()
            with PeakMemory(job.device) as memory, out_of_memory_told("train", less_memory(options)):
                attends = _students(job, run, clock, progress)
            if ranks.is_first:
                write_receipt(run, job, request, attends, clock, memory.peak, astuple(job.sampler(counts[-1])))
        ranks.wait()
        return RunDir.open(run.path).find("transformer")


def less_memory(options: DistillMlcdOptions) -> list[str]:
    """What of the command's own flags makes the training smaller, but for what is set already."""
    smaller = {
        "--set distill_mlcd.gradient_checkpointing=true": not options.gradient_checkpointing,
        f"--set distill_mlcd.accumulation={options.batch_size}": options.accumulation < options.batch_size,
        "--lora-rank 64": not options.lora_rank,
        "--gpus 2 --set distill_mlcd.shard=full": options.shard == "none",
    }
    return [flag for flag, helps in smaller.items() if helps]


def _students(job: Job, run: RunDir, clock: Stopwatch, progress: Progress) -> tuple[Attend, ...]:
    """Train every student in order and write its folder; returns what the student's sites ran on."""
    options, pair = job.options, job.pair
    with clock.phase("load"), pair.teacher.resident("transformer"), pair.student.resident("transformer"):
        pair.teacher.trainable(())
        attends = bind_student(job, job.plan) if job.plan else ()
        if options.lora_rank:
            add_lora(pair.student, options)
        fit_model(pair.student.network(), pair.student.blocks(), options, job.ranks, job.device)
        if options.shard == "full":
            shard(pair.teacher.network(), pair.teacher.blocks(), job.ranks, job.device)
        compile_asked(job, pair.teacher, pair.student)
        clips = HeldClips(job.clips, job.device)
    for line in fallbacks(attends, options.kernel):
        progress.say(f"warning: {line}")
    start, below = options.checkpoint or pair.teacher.name, lineage_of(pair, options)
    lineage = below
    for steps in job.counts:
        folder = run.path if len(job.counts) == 1 else run.path / f"steps-{steps}"
        is_last = steps == job.counts[-1]
        role = "transformer" if is_last else f"transformer-{steps}"
        if job.ranks.is_first:
            place_changes(run, folder, label_of(steps), options.iterations, is_last)
        learned, errors = _student(job, clips, steps, folder, clock, progress)
        # A student that others start from stays as it was written, whatever has changed for those.
        if job.ranks.any(job.ranks.is_first and (is_last or not run.is_whole(role)))[0]:
            kept = whole_on_first(learned.part("student"), job.ranks)
            if job.ranks.is_first:
                sampler = job.sampler(steps)
                changes = changes_within(run.manifest, label_of(steps))
                card = student_card(job, start, sampler, folder / "metrics.jsonl", changes, errors)
                write_student(pair.student, folder / STUDENT, kept, sampler, card, lineage, below, job.plan)
                run.add_output(role, (folder / STUDENT).relative_to(run.path).as_posix())
        if job.ranks.is_first:
            start = f"the student of {steps} steps"
            lineage = (weights_digest(sorted((folder / STUDENT).glob("*.safetensors"))), *lineage)
    return attends


def label_of(steps: int) -> str:
    """What a student is called."""
    return f"student of {counted(steps, 'step')}"


def _student(
    job: Job, clips: HeldClips, steps: int, folder: Path, clock: Stopwatch, progress: Progress
) -> tuple[Learned, list[SegmentError]]:
    """Train the student of `steps` steps from what it is now, leave it as it is to be kept, and look how near it is."""
    options, pair, sampler = job.options, job.pair, job.sampler(steps)
    learned = Learned(trained_parameters(pair.student), options.target == "average")
    schedule = job.schedule.to(job.device)
    lesson = Lesson(options, pair, learned, clips, schedule, steps, job.teacher_guidance, job.trained, job.ranks)
    teacher_spec = job.spec(pair.teacher.defaults.steps, job.teacher_guidance)
    specs = job.spec(steps, sampler.guidance, sampler.timesteps), teacher_spec
    watch = watch_of(job, learned, folder, label_of(steps), specs, ("fewer teacher_points first",), progress)
    with clock.phase(f"train {steps}"):
        train_student(job, learned, lesson.of, lesson.held_out, label_of(steps), folder, progress, watch)
    if not (options.truth_steps and options.held_out):
        return learned, []
    with clock.phase(f"look at {steps}"):
        errors = lesson.segment_errors()
    if job.ranks.is_first:
        write_errors(errors, folder / FILE)
    for line in error_lines(errors):
        progress.say(f"{label_of(steps)}, {line}")
    return learned, errors
