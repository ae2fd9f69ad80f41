"""The README.md of a masked student's folder: what it is, under which masks, and what it was made from."""

from __future__ import annotations

from collections.abc import Sequence

from vdit_cli.distillation.kd_job import KdJob
from vdit_cli.distillation.kd_layers import TaughtLayer
from vdit_cli.distillation.metrics import loss_told
from vdit_cli.distillation.student_card import guidance_told, trained_rows
from vdit_cli.errors import printable, quoted
from vdit_cli.sampling.announcement import counted, masks_told


def kd_card(job: KdJob, losses: Sequence[float], layers: Sequence[TaughtLayer], changes: Sequence[str]) -> str:
    """The card of a student whose loss was `losses[0]` at first and `losses[-1]` at last.

    `changes` are the values that changed on the way, in words; what the card says besides are the last ones.
    """
    options, own, plan = job.options, job.start.defaults, job.plan
    steps = counted(own.steps, "step")
    more = ", going on with an adapter" if job.adapter else ""
    times = f", timesteps {', '.join(map(str, job.sampler.timesteps))}" if job.sampler else ""
    terms = f"{options.attention_weight:g} attention + {options.hidden_weight:g} hidden"
    terms += f" + {options.output_weight:g} output"
    shares = ", ".join(f"{each.layer}: {each.left:.2f}" for each in layers)
    left = f"| attention loss left, by layer | {shares} |\n" if layers else ""
    changed = f"| changed on the way | {'; '.join(changes)} |\n" if changes else ""
    loss = ", ".join(map(loss_told, dict.fromkeys((*losses[:1], *losses[-1:])) or (None,)))
    return f"""# A student of {job.start.name} under {masks_told(job.plan)}: {steps}, {guidance_told(own.guidance)}

Made by `evdit distill-kd` (knowledge distillation under tile masks, arXiv 2502.06155): the teacher is its start, dense.
It is a transformer alone: VAE, text encoder and tokenizer are {job.start.name}'s.

    evdit generate "..." --model {quoted(printable(options.model))} --checkpoint THIS_FOLDER

| | |
|---|---|
| masks | {plan.masks_text()}, kept {plan.kept_share:.2f} and skipped {plan.skipped_share:.2f} of the tiles |
| sampler | {own.scheduler}{times} |
{trained_rows(job, "", printable(options.checkpoint or job.start.name), more)}
| loss | {terms} |
{changed}| loss {"at first and " if len(losses) > 1 else ""}at the end | {loss} |
{left}
`plan.json` holds the masks: `evdit generate --checkpoint` wears them unasked, `--masks none` is full attention.
"""
