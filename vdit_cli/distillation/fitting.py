"""How a model is made to fit its ranks and their memory: recomputed activations, shards, number formats."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vdit_cli.errors import EvditError
from vdit_cli.parallel.groups import Ranks
from vdit_cli.parallel.sharding import shard
from vdit_cli.recipe_training import RankedTrainingOptions

ACCELERATE_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""Environment variable by which `accelerate launch --mixed_precision` tells its choice."""


def check_shard(options: RankedTrainingOptions) -> None:
    """Raise EvditError (2) for optimisers whose states can't be split over ranks as the weights are."""
    if options.shard == "full" and options.adam != "adamw":
        raise EvditError(
            f"shard=full can't go with adam={options.adam}: 8-bit states can't be split",
            where=options.where("shard") or options.where("adam"),
            next_steps=["adam=adamw", "shard=none"],
        )


def fit_model(
    model: nn.Module, blocks: Sequence[nn.Module], options: RankedTrainingOptions, ranks: Ranks, device: torch.device
) -> nn.Module:
    """The same model, its blocks recomputed in the backward pass and sharded over the ranks where options say so.

    To be called before the optimisers are built: sharding puts other parameters into the model.
    """
    check_shard(options)
    if options.gradient_checkpointing:
        recompute_blocks(blocks)
    if options.shard == "full":
        shard(model, blocks, ranks, device)
    return model


def recompute_blocks(blocks: Iterable[nn.Module]) -> None:
    """Let every block keep only its inputs and compute the rest again in the backward pass; the numbers are the same.

    Source: gradient checkpointing, arXiv 1604.06174.
    """
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """A region whose matrix products run in `precision`: float32, bfloat16, or auto.

    auto is what `accelerate launch` was told, else bfloat16 on CUDA and float32 elsewhere. Parameters, their
    gradients and the optimiser stay in float32. Raises EvditError (2) for accelerate's fp16, which has no scaler here.
    """
    told = {"no": "float32", "bf16": "bfloat16"}
    asked = os.environ.get(ACCELERATE_PRECISION, "no")
    if precision == "auto" and asked not in told:
        raise EvditError(
            f"accelerate's mixed precision is {asked}: it must be no or bf16",
            where=f"{ACCELERATE_PRECISION}={asked}",
            next_steps=["accelerate launch --mixed_precision bf16"],
        )
    if precision == "auto":
        precision = told[asked] if ACCELERATE_PRECISION in os.environ else "auto"
    is_half = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=is_half)


def number_format(precision: str, device: torch.device) -> str:
    """What the matrix products of such a region run in: "bfloat16" or "float32"."""
    with autocast(precision, device):
        return "bfloat16" if torch.is_autocast_enabled(device.type) else "float32"
