"""Memory that a knowledge distillation will need, told before any weight is loaded, and what would make it fit.

Needed = weights, gradients, their average and the optimiser's states, what the blocks keep for the backward pass, and
the differences of the loss, which stay on the CPU where blocks are computed again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vdit_cli.distillation.fitting import number_format
from vdit_cli.distillation.held_clips import held_bytes
from vdit_cli.distillation.kd_job import KdJob
from vdit_cli.errors import OUT_OF_MEMORY, EvditError
from vdit_cli.recipe_training import DistillKdOptions
from vdit_cli.sampling.memory import WORK_SPACE, free_bytes, gib

STATES = {"adamw": 8, "adamw-8bit": 2, "adamw-8bit-paged": 0}
"""Bytes of the optimiser's states a trained number; Muon keeps one of float32 for each number of a matrix."""
WHOLE = torch.float32.itemsize
LESS_MEMORY: dict[str, dict[str, Any]] = {
    "--set distill_kd.gradient_checkpointing=true": {"gradient_checkpointing": True},
    "--set distill_kd.accumulation={batch_size}": {"accumulation": None},
    "--lora-rank 64": {"lora_rank": 64},
}
"""What makes a training smaller, by its flags; None is as many as the batch has clips."""


def needed_bytes(job: KdJob, options: DistillKdOptions) -> int:
    """Bytes on the device under `options`, which may be others than the job's own."""
    size, layers = job.clips.size, job.start.architecture.layers
    half = number_format(options.precision, job.device) == "bfloat16"
    products = torch.bfloat16 if half else torch.float32
    part = -(-options.batch_size // (job.ranks.count * options.accumulation))
    made = job.start.training_sizes(part, (size["video_frames"], size["height"], size["width"]), products)
    trained = options.lora_rank * made.pairs or made.weights
    # With LoRA one network is both; the frozen weights have the type of the products, trained ones are float32.
    weights = made.weights * products.itemsize + 2 * trained * WHOLE if options.lora_rank else 2 * made.weights * WHOLE
    cast = made.weights * products.itemsize if half and not options.lora_rank else 0
    by_muon = (trained if options.lora_rank else made.matrices) if options.muon_rate else 0
    learning = trained * 2 * WHOLE + by_muon * WHOLE + (trained - by_muon) * STATES[options.adam]
    differences = made.stream_bytes * sum(
        (bool(options.attention_weight) and masked) + bool(options.hidden_weight) for masked in job.is_masked
    )
    kept = layers * made.block_bytes + differences
    if options.gradient_checkpointing:
        kept = layers * made.stream_bytes + made.block_bytes + on_cpu(job, differences)
    # The teacher's block beside them.
    return held_bytes(job.clips) + weights + cast + learning + int(WORK_SPACE * (kept + made.block_bytes))


def on_cpu(job: KdJob, size: int) -> int:
    """Of bytes that the CPU keeps, those that count against the device: all where that is the CPU."""
    return size if job.device.type == "cpu" else 0


def smaller(options: DistillKdOptions) -> dict[str, DistillKdOptions]:
    """What makes a training smaller, by the flags for it: each thing that is not set already, then all of them."""
    ways: dict[str, dict[str, Any]] = {}
    for flags, way in LESS_MEMORY.items():
        values: dict[str, Any] = {key: options.batch_size if value is None else value for key, value in way.items()}
        if not (options.lora_rank and "lora_rank" in values) and replace(options, **values) != options:
            ways[flags.format(batch_size=options.batch_size)] = values
    if len(ways) > 1:
        ways[" ".join(ways)] = {key: value for way in ways.values() for key, value in way.items()}
    return {flags: replace(options, **way) for flags, way in ways.items()}


def less_memory(options: DistillKdOptions) -> list[str]:
    """What of the command's own flags makes the training smaller, but for what is set already."""
    return list(smaller(options))[:3]


def check_memory(job: KdJob) -> tuple[int, int]:
    """Bytes (needed, free). Raises EvditError (exit 4), naming what would fit, where there is too little."""
    need, free = needed_bytes(job, job.options), free_bytes(job.device)
    if need <= free:
        return need, free
    ways = [flags for flags, lighter in smaller(job.options).items() if needed_bytes(job, lighter) <= free]
    raise EvditError(
        f"this training needs about {gib(need)}, and {gib(free)} are free on {job.device}",
        where=f"batch_size {job.options.batch_size}",
        next_steps=ways[:3] or [f"a machine with {gib(need)} of memory"],
        exit_code=OUT_OF_MEMORY,
    )
