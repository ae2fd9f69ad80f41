"""What the README.md of every student says alike, in words: its guidance, what was trained, and on which clips."""

from __future__ import annotations

from vdit_cli.distillation.student_job import StudentJob


def guidance_told(guidance: float) -> str:
    """How a student is sampled."""
    return "without guidance" if guidance == 1.0 else f"with guidance {guidance:g}"


def trained_rows(job: StudentJob, beside: str, start: str, more: str = "") -> str:
    """The rows of the table for what was trained, under what (`beside`), on which data and from which `start`.

    `more` stands behind the weights that were trained.
    """
    options = job.options
    weights = f"LoRA of rank {options.lora_rank}, merged" if options.lora_rank else "all weights"
    first = f"the first {options.clips} of " if options.clips else ""
    return f"""| trained | {weights}{more}, {beside}{options.iterations} iterations of {options.batch_size} clips |
| data | {first}{len(job.clips)} clips, {options.held_out} of them held out |
| start | {start} |"""
