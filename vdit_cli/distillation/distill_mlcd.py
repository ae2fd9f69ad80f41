"""Distil a student of few steps from a model: data and models checked first, then one student after another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vdit_cli.artifacts.changes import DONE, changes_within, differences, has_unplaced, place
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.artifacts.receipt import Ran, Receipt, this_machine
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.attention.bind import Attend
from vdit_cli.data.shards import open_data
from vdit_cli.distillation.checkpoints import check_goes_on, newest_iteration
from vdit_cli.distillation.fitting import autocast, fit_model, number_format
from vdit_cli.distillation.mlcd_card import student_card
from vdit_cli.distillation.mlcd_job import (
    Job,
    announce,
    bind_student,
    check_options,
    lineage_of,
    prepare,
    request_of,
    step_counts,
)
from vdit_cli.distillation.mlcd_lesson import HeldClips, Lesson
from vdit_cli.distillation.mlcd_networks import (
    Learned,
    add_lora,
    trained_parameters,
    write_student,
)
from vdit_cli.distillation.mlcd_previews import Previews
from vdit_cli.distillation.mlcd_watch import Watch
from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.samples import SplitLoss
from vdit_cli.distillation.trainer import put_parameters, train
from vdit_cli.errors import quoted
from vdit_cli.parallel.groups import Ranks, joined
from vdit_cli.parallel.sharding import shard, whole_on_first
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.sampling.announcement import counted
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.sampling.plans import fallbacks
from vdit_cli.timing import Progress, Stopwatch

STUDENT = "student"


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
        run, is_done = _begun(out, request, allow_changed, ranks)
        if is_done:
            progress.say(f"{run.path} is done already{longer_since(run)}")
            return run.find("transformer")
        announce(job, progress)
        with run if ranks.is_first else nullcontext():
            ranks.wait()  # the first rank has cleared leftovers away, and nobody reads a checkpoint before
            run.manifest["lineage"] = list(lineage_of(job.pair, options))
            clock = Stopwatch()
            with PeakMemory(job.device) as memory, out_of_memory_told("train", less_memory(options)):
                attends = _students(job, run, clock, progress)
            if ranks.is_first:
                _receipt(job, request, attends, clock, memory.peak).write(run.path / "receipt.json")
        ranks.wait()
        return RunDir.open(run.path).find("transformer")


def _begun(out: Path | None, request: Request, allow_changed: bool, ranks: Ranks) -> tuple[RunDir, bool]:
    """The run, which the first rank makes or goes on with and the others only know of, and whether it is done."""
    begun: list[RunDir] = []

    def begin() -> str:
        begun.append(RunDir.start(out, request, allow_changed))
        return json.dumps([str(begun[0].path), begun[0].is_done()])

    path, is_done = json.loads(ranks.from_first(begin))
    if begun:
        return begun[0], is_done
    return RunDir.open(path) if is_done else RunDir(Path(path), request.manifest()), is_done


def longer_since(run: RunDir) -> str:
    """What has become of a finished run that is being made longer, in words, or nothing."""
    if run.since is None:
        return ""
    longer = differences(run.manifest, run.since.manifest)
    sets = (f"distill_mlcd.{key}={json.dumps(now, separators=(',', ':'))}" for key, (_, now) in longer.items())
    values = " ".join(f"--set {quoted(each)}" for each in sets)
    return (
        f": its student of {run.manifest['values']['iterations']} iterations. It is being made longer, which is "
        f"{run.since.state()}: {values} goes on with that"
    )


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
            add_lora(pair.student, options.lora_rank, options.seed)
        fit_model(pair.student.network(), pair.student.blocks(), options, job.ranks, job.device)
        if options.shard == "full":
            shard(pair.teacher.network(), pair.teacher.blocks(), job.ranks, job.device)
        # Compiled blocks in shards ran once, on two GPUs: there only a person asks for them.
        is_compiled = options.compile == "auto" and job.device.type == "cuda" and options.shard == "none"
        for backbone in (pair.teacher, pair.student) if is_compiled or options.compile == "blocks" else ():
            backbone.compile_blocks()
        clips = HeldClips(job.clips, job.device)
    for line in fallbacks(attends, options.kernel):
        progress.say(f"warning: {line}")
    start, below = options.checkpoint or pair.teacher.name, lineage_of(pair, options)
    lineage = below
    for steps in job.counts:
        folder = run.path if len(job.counts) == 1 else run.path / f"steps-{steps}"
        is_last = steps == job.counts[-1]
        role = "transformer" if is_last else f"transformer-{steps}"
        if job.ranks.is_first and has_unplaced(run.manifest):
            done = newest_iteration(folder / "checkpoints")
            if run.before is not None and is_last:
                check_goes_on(folder / "checkpoints", done, options.iterations, run.before["state"] == DONE)
            if is_last or done < options.iterations:
                place(run.manifest, label_of(steps), done)
                run.save()
        learned = _student(job, clips, steps, folder, clock, progress)
        # A student that others start from stays as it was written, whatever has changed for those.
        if job.ranks.any(job.ranks.is_first and (is_last or not run.is_whole(role)))[0]:
            kept = whole_on_first(learned.part("student"), job.ranks)
            if job.ranks.is_first:
                sampler = job.sampler(steps)
                changes = changes_within(run.manifest, label_of(steps))
                card = student_card(job, start, sampler, folder / "metrics.jsonl", changes)
                write_student(pair.student, folder / STUDENT, kept, sampler, card, lineage, below, job.plan)
                run.add_output(role, (folder / STUDENT).relative_to(run.path).as_posix())
        if job.ranks.is_first:
            start = f"the student of {steps} steps"
            lineage = (weights_digest(sorted((folder / STUDENT).glob("*.safetensors"))), *lineage)
    return attends


def label_of(steps: int) -> str:
    """What a student is called."""
    return f"student of {counted(steps, 'step')}"


def _student(job: Job, clips: HeldClips, steps: int, folder: Path, clock: Stopwatch, progress: Progress) -> Learned:
    """Train the student of `steps` steps from what it is now, and leave it as it is to be kept."""
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
    label = label_of(steps)
    schedule = job.schedule.to(job.device)
    held = options.held_out
    lesson = Lesson(options, pair, learned, clips, schedule, steps, job.teacher_guidance, job.trained, held, job.ranks)
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
            ranks=job.ranks,
            follow=learned.follow,
            held_out=lesson.held_out if held else None,
            watch=_watch(job, learned, steps, folder, label, progress) if options.previews else _see_nothing,
        )
    put_parameters(learned, trained.average)
    return learned


def _see_nothing(iteration: int, average: Mapping[str, Tensor]) -> None:
    """Without previews nothing is watched."""


def _watch(job: Job, learned: Learned, steps: int, folder: Path, label: str, progress: Progress) -> Watch:
    options, sampler = job.options, job.sampler(steps)
    previews = Previews(
        job.pair,
        job.clips,
        folder / "previews",
        options.previews,
        options.seed,
        job.spec(steps, sampler.guidance, sampler.timesteps),
        job.spec(job.pair.teacher.defaults.steps, job.teacher_guidance),
        partial(autocast, options.precision, job.device),
        beside=(options.precision, job.plan.digest if job.plan else None),
        in_shards=options.shard == "full",
    )
    return Watch(previews, learned, folder, label, options, progress, job.ranks)


def _receipt(job: Job, request: Request, attends: tuple[Attend, ...], clock: Stopwatch, peak: int) -> Receipt:
    """The receipt of the run: what was asked, what ran, and the last student's sampler."""
    sampler, device = job.sampler(job.counts[-1]), job.device
    kept = sum(attend.mask.kept_share for attend in attends) / len(attends) if attends else 1.0
    return Receipt(
        asked=dict(request.values),
        ran=Ran(
            model=job.pair.teacher.name,
            weights=job.pair.teacher.weights_digest,
            device=str(device),
            dtype=number_format(job.options.precision, device),
            scheduler=sampler.scheduler,
            timesteps=sampler.timesteps,
            guidance=sampler.guidance,
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
    )
