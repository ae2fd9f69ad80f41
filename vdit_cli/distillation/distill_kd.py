"""Distil a student that is right under its masks: all is checked, then its dense self teaches it layer by layer."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from vdit_cli.artifacts.changes import changes_within
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.attention.bind import Attend
from vdit_cli.data.shards import open_data
from vdit_cli.distillation.fitting import fit_model
from vdit_cli.distillation.held_clips import HeldClips
from vdit_cli.distillation.kd_card import kd_card
from vdit_cli.distillation.kd_job import LABEL, KdJob, announce, check_kd_options, prepare, request_of
from vdit_cli.distillation.kd_layers import FILE, TaughtLayer, layer_lines, taught_layers, write_layers
from vdit_cli.distillation.kd_lesson import KdLesson
from vdit_cli.distillation.kd_memory import check_memory, less_memory
from vdit_cli.distillation.kd_networks import OneNetwork, put_pairs
from vdit_cli.distillation.metrics import losses_in
from vdit_cli.distillation.student_job import bind_student
from vdit_cli.distillation.student_networks import Learned, trained_parameters, write_student
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
from vdit_cli.parallel.sharding import whole_on_first
from vdit_cli.recipe_training import DistillKdOptions
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.sampling.plans import fallbacks
from vdit_cli.sampling.trajectory import timesteps_of
from vdit_cli.timing import Progress, Stopwatch


def distill_kd(options: DistillKdOptions, out: Path | None, progress: Progress, allow_changed: bool = False) -> Path:
    """Train, or go on training, a masked student in the run `out`; returns its folder, which `--checkpoint` takes.

    Without `out` the run is `runs/<date>-distill-kd-<model>`. Ranks and `allow_changed` are as in `distill_mlcd`.
    Raises EvditError (2) for what does not fit, (4) for too little memory, (1) where a student collapses, and
    Interrupted after saving.
    """
    with joined(options.device) as ranks:
        check_kd_options(options, ranks)
        job = prepare(options, open_data(options.data or ""), ranks, progress)
        request = request_of(job)
        run, is_done = begun(out, request, allow_changed, ranks)
        if is_done:
            progress.say(done_already(run))
            return run.find("transformer")
        announce(job, *check_memory(job), progress)
        with run if ranks.is_first else nullcontext():
            ranks.wait()  # the first rank has cleared leftovers away, and nobody reads a checkpoint before
            run.manifest["lineage"] = list(job.lineage())
            clock = Stopwatch()
            with PeakMemory(job.device) as memory, out_of_memory_told("train", less_memory(options)):
                attends = _made(job, run, clock, progress)
            if ranks.is_first:
                own = job.start.defaults
                times = timesteps_of(job.start, job.preview_spec())
                sampled = own.scheduler, job.sampler.timesteps if job.sampler else times, own.guidance
                write_receipt(run, job, request, attends, clock, memory.peak, sampled)
        ranks.wait()
        return RunDir.open(run.path).find("transformer")


def _made(job: KdJob, run: RunDir, clock: Stopwatch, progress: Progress) -> tuple[Attend, ...]:
    """Train the student, report its layers and write its folder; returns what its sites ran on."""
    options, pair, folder = job.options, job.pair, run.path
    with clock.phase("load"), pair.teacher.resident("transformer"), pair.student.resident("transformer"):
        attends = _fitted(job)
        learned = Learned(trained_parameters(pair.student), has_target=False)
        clips = HeldClips(job.clips, job.device)
    for line in fallbacks(attends, options.kernel):
        progress.say(f"warning: {line}")
    schedule = job.schedule.to(job.device)
    lesson = KdLesson(options, pair, clips, schedule, job.is_masked, job.times, job.is_guided, job.trained, job.ranks)
    if job.ranks.is_first:
        place_changes(run, folder, LABEL, options.iterations, is_last=True)
    spec = job.preview_spec()
    watch = watch_of(job, learned, folder, LABEL, (spec, spec), (), progress)
    # What is loaded is the start, also where a checkpoint is about to be gone on with.
    before = lesson.held_layers() if options.held_out else {}
    with clock.phase("train"):
        train_student(job, learned, lesson.of, lesson.held_out, LABEL, folder, progress, watch)
    after = lesson.held_layers() if options.held_out else {}
    kept = whole_on_first(learned.part("student"), job.ranks)
    if job.ranks.is_first:
        layers = taught_layers(job.plan, before, after)
        card = kd_card(job, losses_in(folder / "metrics.jsonl"), layers, changes_within(run.manifest, LABEL))
        place = folder / STUDENT
        write_student(pair.student, place, kept, job.sampler, card, job.lineage(), job.below(), job.plan)
        run.add_output("transformer", STUDENT)
        _report(layers, job, run, progress)
    return attends


def _fitted(job: KdJob) -> tuple[Attend, ...]:
    """Both networks as they are trained: masks bound, pairs put beside, blocks recomputed or compiled where asked."""
    options, pair = job.options, job.pair
    pair.teacher.trainable(())
    attends = bind_student(job, job.plan)
    if isinstance(pair, OneNetwork):
        pair.bind_dense(attends, options.kernel)
        put_pairs(pair, job.adapter, options)
    fit_model(pair.student.network(), pair.student.blocks(), options, job.ranks, job.device)
    compile_asked(job, *dict.fromkeys((pair.teacher, pair.student)))
    return attends


def _report(layers: list[TaughtLayer], job: KdJob, run: RunDir, progress: Progress) -> None:
    """Write the report of the layers and say it; without held-out clips there is none."""
    if not layers:
        progress.say("no clip is held out: what became of each layer is not told (distill_kd.held_out)")
        return
    write_layers(layers, run.path / FILE)
    run.add_output("layers", FILE)
    for line in layer_lines(layers, job.plan, run.path / STUDENT / "plan.json"):
        progress.say(line)
