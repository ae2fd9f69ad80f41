"""The README.md of a student's folder: what it is, how it is sampled, and what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.distillation.metrics import last_loss, loss_told
from vdit_cli.distillation.mlcd_job import Job
from vdit_cli.distillation.segment_errors import SegmentError, told_worth
from vdit_cli.distillation.student_card import guidance_told, trained_rows
from vdit_cli.errors import printable, quoted
from vdit_cli.sampling.announcement import masks_told


def student_card(
    job: Job, start: str, sampler: Sampler, metrics: Path, changes: Sequence[str], errors: Sequence[SegmentError]
) -> str:
    """The card of a student that began as `start`; its last loss is read from the metrics of its training.

    `changes` are the values that changed on the way, in words; what the card says besides are the last ones.
    """
    options, teacher = job.options, job.pair.teacher.name
    loss = loss_told(last_loss(metrics))
    steps = "1 step" if sampler.steps == 1 else f"{sampler.steps} steps"
    asked = options.segment_shares if len(options.segment_shares) == sampler.steps else ()
    shares = f"| samples for each step | {' : '.join(f'{share:g}' for share in asked)} |\n" if asked else ""
    changed = f"| changed on the way | {'; '.join(changes)} |\n" if changes else ""
    substeps = f", {options.teacher_substeps} substeps to each" if options.teacher_substeps > 1 else ""
    reuse = f", each answer learned from {options.teacher_reuse} times" if options.teacher_reuse > 1 else ""
    worth = ", ".join(told_worth(each) for each in errors)
    near = f"| a step is worth, of the teacher's | {worth} (by segment, on held-out clips) |\n" if errors else ""
    return f"""# A student of {teacher}: {steps}, {guidance_told(sampler.guidance)}

Made by `evdit distill-mlcd` (multi-step latent consistency distillation, arXiv 2403.06807 and 2502.06155).
It is a transformer alone: VAE, text encoder and tokenizer are {teacher}'s.

    evdit generate "..." --model {quoted(printable(options.model))} --checkpoint THIS_FOLDER

| | |
|---|---|
| sampler | {sampler.scheduler}, timesteps {", ".join(map(str, sampler.timesteps))} |
{trained_rows(job, f"{masks_told(job.plan)}, ", printable(start))}
| teacher points a segment | {", ".join(map(str, options.teacher_points))}{substeps}{reuse} |
{shares}{changed}| loss at the end | {loss} |
{near}
`sampler.json` holds the sampler: `evdit generate` takes steps, timesteps and guidance from it.
"""
