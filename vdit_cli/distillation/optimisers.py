"""Which optimiser moves which parameter, and how its rate runs over the iterations.

Matrices and convolution kernels go to Muon (as matrices: out x everything else), all else to AdamW.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vdit_cli.errors import ENVIRONMENT, EvditError


def learning_rate_share(iteration: int, iterations: int, warmup: int, flat_share: float, final_share: float) -> float:
    """Share of the full learning rate at `iteration` (0-based): linear warm-up, constant, linear decay.

    The rate rises over `warmup` iterations, stays at 1 until `flat_share` of all `iterations`, and falls linearly
    to `final_share` at the last one.
    """
    if iteration < warmup:
        return (iteration + 1) / warmup
    flat_end = max(warmup, round(flat_share * iterations))
    if iteration <= flat_end:
        return 1.0
    fallen = (iteration - flat_end) / max(1, iterations - 1 - flat_end)
    return 1.0 + (final_share - 1.0) * min(1.0, fallen)


@dataclass
class Optimisers:
    """AdamW and Muon over the parameters of one model, and slower ones of each where asked, stepped together.

    `views` pairs each parameter that Muon moves with its two-dimensional view, which shares the storage.
    """

    stepped: tuple[torch.optim.Optimizer, ...]
    views: tuple[tuple[nn.Parameter, nn.Parameter], ...]
    rates: tuple[float, ...]

    def step(self, rate_share: float) -> None:
        """Move all parameters along their gradients, at `rate_share` of each optimiser's full rate."""
        for parameter, view in self.views:
            view.grad = None if parameter.grad is None else parameter.grad.reshape(view.shape)
        for optimiser, rate in zip(self.stepped, self.rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * rate_share
            optimiser.step()


def build_optimisers(
    model: nn.Module,
    is_matrix: Callable[[str, Tensor], bool],
    *,
    matrix_rate: float,
    rate: float,
    betas: tuple[float, float],
    matrix_decay: float,
    adam: str = "adamw",
    is_slow: Callable[[str], bool] = lambda name: False,
    slow_share: float = 1.0,
) -> Optimisers:
    """Muon for the parameters that `is_matrix(name, parameter)` claims, AdamW without decay for the others.

    `adam` is a kind that `build_adam` knows. What `is_slow(name)` tells of moves at `slow_share` of its rate.

    Muon's update is scaled by .2 sqrt(max(rows, cols)), so that both take rates of the same size.
    Source: Muon, kellerjordan.github.io/posts/muon; the scale, arXiv 2502.16982 section 2.2.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_matrix(name, parameter), is_slow(name)), []).append(parameter)
    stepped: list[torch.optim.Optimizer] = []
    rates: list[float] = []
    views: list[tuple[nn.Parameter, nn.Parameter]] = []
    for (is_muon, slow), parameters in sorted(groups.items()):  # AdamW first, as in checkpoints
        full = (matrix_rate if is_muon else rate) * (slow_share if slow else 1.0)
        rates.append(full)
        if not is_muon:
            stepped.append(build_adam(parameters, adam, rate=full, betas=betas))
            continue
        # The view must alias the parameter's storage: reshape of a channels-last kernel would be a copy.
        pairs = [(each, nn.Parameter(each.detach().view(each.shape[0], -1))) for each in parameters]
        views += pairs
        stepped.append(
            torch.optim.Muon(
                [view for _, view in pairs], lr=full, weight_decay=matrix_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return Optimisers(tuple(stepped), tuple(views), tuple(rates))


def build_adam(
    parameters: list[nn.Parameter], kind: str, *, rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """AdamW without decay: "adamw", "adamw-8bit" (states of 8 bits) or "adamw-8bit-paged" (which may leave the GPU).

    Raises EvditError (3) for 8 bits without bitsandbytes. Source of 8-bit states: arXiv 2110.02861.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=0.0)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise EvditError(
            f"adam is {kind}: its states of 8 bits need the package bitsandbytes, which is not installed",
            where="adam",
            next_steps=["pip install 'evdit[train]'", "adam=adamw"],
            exit_code=ENVIRONMENT,
        )
    import bitsandbytes

    eight_bit = {"adamw-8bit": bitsandbytes.optim.AdamW8bit, "adamw-8bit-paged": bitsandbytes.optim.PagedAdamW8bit}
    return eight_bit[kind](parameters, lr=rate, betas=betas, weight_decay=0.0)


def update_average(average: Iterable[Tensor], parameters: Iterable[Tensor], keep: float) -> None:
    """Move an exponential moving average in place: average = keep * average + (1 - keep) * parameter."""
    torch._foreach_lerp_(list(average), [parameter.detach() for parameter in parameters], 1.0 - keep)
