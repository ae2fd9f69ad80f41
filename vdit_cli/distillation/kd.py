"""The loss of knowledge distillation (docs/method.md): pure functions of two networks' layers.

Letters: B batch, N tokens, C channels, L layers. Sums run over all elements of one sample, means over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from vdit_cli.distillation.samples import LossTerms

Layers = Iterator[tuple[Tensor, ...]]
"""What `TellsLayers.layerwise` gives: (attended, hidden) of each block, then (prediction,)."""


class Weights(NamedTuple):
    """The weight of each term of the loss; a term of weight 0 is not computed."""

    attention: float = 1.0
    hidden: float = 1.0
    output: float = 1.0


def relative_error(mine: Tensor, wanted: Tensor) -> Tensor:
    """|mine - wanted|^2 / |wanted|^2 of each sample (B,), summed in float32 or better.

    Of the two only the difference is kept for the backward pass, in their own type.
    """
    exact = torch.promote_types(mine.dtype, torch.float32)
    wrong_B, size_B = (
        torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=exact).square() for x in (mine - wanted, wanted)
    )
    return wrong_B / size_B.clamp(min=torch.finfo(exact).tiny)


def layer_errors(
    student: Layers,
    teacher: Layers,
    is_masked: Sequence[bool],
    weights: Weights,
    keep: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Tensor]:
    """The relative errors of the student's "attention" (masked layers, B), "hidden" (L, B) and "output" (1, B).

    Both are asked layer by layer in step, so that of the teacher one layer is there at a time. `keep` decides where
    what the backward pass needs of the errors is kept.
    """
    found: dict[str, list[Tensor]] = {name: [] for name, weight in weights._asdict().items() if weight}
    for layer, (mine, wanted) in enumerate(zip(student, teacher, strict=True)):
        is_output = layer == len(is_masked)
        for name, own, other in zip(("output",) if is_output else ("attention", "hidden"), mine, wanted, strict=True):
            if name in found and (name != "attention" or is_masked[layer]):
                with keep():
                    found[name].append(relative_error(own, other))
    return {name: torch.stack(errors) for name, errors in found.items()}


def kd_losses(errors: dict[str, Tensor], weights: Weights) -> LossTerms:
    """The mean of each term over layers and batch, as `<term>_loss`, and `loss`, their weighted sum.

    loss = w_A mean_masked |A_S - A_T|^2 / |A_T|^2 + w_H mean |H_S - H_T|^2 / |H_T|^2 + w_O |o_S - o_T|^2 / |o_T|^2.
    """
    means = {name: error_LB.mean() for name, error_LB in errors.items()}
    weighted = [weight * means[name] for name, weight in weights._asdict().items() if weight]
    return {"loss": torch.stack(weighted).sum()} | {f"{name}_loss": mean for name, mean in means.items()}
