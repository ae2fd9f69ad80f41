"""Whether a kernel computes what it says, before it is timed: outputs and gradients against float64, in this process.

On a grid of the same mask with few tokens: whole outputs and all gradients, on random and on adversarial inputs. At
full size: the outputs of 256 query rows of all heads, computed in float64 a head at a time, so that nothing of size
N x N exists. Letters: B batch, N tokens, H heads, D head width, R sampled rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vdit_cli.attention.bind import Case
from vdit_cli.attention.order import Order
from vdit_cli.attention.reference import reference_attention
from vdit_cli.bench.contenders import Bound, Contender
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

TOLERANCE: dict[torch.dtype, float] = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest relative error that passes, by type: about 300, 8 and 8 units of its rounding (the sum over thousands of
keys and the half types' rounding of the weights cost a few) [ours]."""

SCORE_ROUNDINGS = 8
"""A score s is known in float32 to a few units of its rounding, and exp makes those a relative error of the weight. So
inputs with large scores are allowed this many units of float32 rounding times the largest |s| on top [ours]."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""q, k, v and an output gradient, each (B, N, H, D)."""

SMALL_TOKENS = {"cuda": 2048, "cpu": 520}
"""Most tokens of the small grid; a float64 reference on two CPU cores has to be quick."""
SMALL_HEADS, SMALL_BATCH, SMALL_TEXT = 3, 2, 37
SAMPLED_ROWS = 256
SAMPLED = "sampled rows"


@dataclass(frozen=True)
class Verdict:
    """The largest relative errors found, and the largest that pass, both by what was compared."""

    errors: dict[str, float]
    allowed: dict[str, float]

    @property
    def worst(self) -> str:
        """What is farthest beyond what passes, or nearest to it; NaN is the worst of all."""
        shares = {name: error / self.allowed[name] for name, error in self.errors.items()}
        return max(shares, key=lambda name: float("inf") if shares[name] != shares[name] else shares[name])

    @property
    def passed(self) -> bool:
        """Whether every error is one that passes; NaN is none."""
        return all(error <= self.allowed[name] for name, error in self.errors.items())

    def joined(self, other: Verdict) -> Verdict:
        """Both verdicts as one."""
        return Verdict({**self.errors, **other.errors}, {**self.allowed, **other.allowed})


def judge_small(contender: Contender, case: Case, seed: int) -> Verdict | str:
    """The verdict on a small grid, or the reason why the kernel can't take it.

    The gradients are left out only where the kernel says that it has none. The error of an output is its largest
    difference over the largest value. So is that of a gradient on random inputs; on adversarial ones gradients cancel
    to nearly nothing, so there it is taken over the largest term that cancels.
    """
    small = replace(case, grid=small_grid(case), heads=min(case.heads, SMALL_HEADS), batch=SMALL_BATCH, needs_grad=True)
    bound = contender.ready(small)
    with_gradients = not isinstance(bound, str)
    if isinstance(bound, str):
        bound = contender.ready(replace(small, needs_grad=False))
        if isinstance(bound, str) or case.needs_grad:
            return bound if isinstance(bound, str) else "it has no backward"

    def reference(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        return reference_attention(q_BNHD, k_BNHD, v_BNHD, contender.mask, small.grid)

    errors: dict[str, float] = {}
    allowed: dict[str, float] = {}
    for name, change in INPUTS.items():
        q, k, v, grad = change(*random_inputs(small, seed))
        found = outputs(bound.in_grid_order, q, k, v, grad, with_gradients)
        exact = q.double(), k.double(), v.double(), grad.double()
        truth = outputs(reference, *exact, with_gradients)
        least = {} if name == "random" else {"dq": k.abs().max().item(), "dk": q.abs().max().item()}
        for part, value in found.items():
            errors[f"{name} {part}"] = relative_error(value, truth[part], least.get(part, 0.0))
            allowed[f"{name} {part}"] = TOLERANCE[case.dtype] + score_rounding(q, k)
    return Verdict(errors, allowed)


def judge_rows(bound: Bound, out_BNHD: Tensor, operands: list[Tensor], mask: TileMask, grid: VideoGrid) -> Verdict:
    """The verdict on `out_BNHD` at full size, from SAMPLED_ROWS query rows of all heads; tokens in `bound.order`."""
    q, k, v = (x.detach() for x in operands)
    frames = frame_numbers(grid, bound.order).to(q.device)
    rows = sampled_rows(grid.tokens).to(q.device)
    is_everyone = frames < 0
    for frame in mask.global_frames:
        is_everyone |= frames == frame
    kept_RN = (frames[rows, None] == frames[None, :]) | is_everyone[rows, None] | is_everyone[None, :]
    largest = difference = 0.0
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = (q[b, rows, h].double() @ k[b, :, h].double().T) * q.shape[-1] ** -0.5
            truth = scores.masked_fill_(~kept_RN, float("-inf")).softmax(-1) @ v[b, :, h].double()
            far = (out_BNHD[b, rows, h].detach().double() - truth).abs().max().item()
            difference = far if far != far else max(difference, far)  # NaN stays
            largest = max(largest, truth.abs().max().item())
            if difference != difference:
                return Verdict({SAMPLED: difference}, {SAMPLED: TOLERANCE[q.dtype]})
    return Verdict({SAMPLED: difference / largest}, {SAMPLED: TOLERANCE[q.dtype]})


def score_rounding(q_BNHD: Tensor, k_BNHD: Tensor) -> float:
    """What the rounding of scores adds to a tolerance: SCORE_ROUNDINGS units of float32 times the largest |score|."""
    largest = max(
        (q @ k.transpose(-1, -2)).abs().max().item()
        for q, k in zip(q_BNHD.double().transpose(1, 2), k_BNHD.double().transpose(1, 2), strict=True)
    )
    return SCORE_ROUNDINGS * torch.finfo(torch.float32).eps / 2 * largest * q_BNHD.shape[-1] ** -0.5


def small_grid(case: Case) -> VideoGrid:
    """The case's frames and text with few tokens a frame, an odd number: a float64 reference is quick on it."""
    most = SMALL_TOKENS.get(case.device.type, SMALL_TOKENS["cpu"])
    before, after = (min(length, SMALL_TEXT) for length in (case.grid.text_before, case.grid.text_after))
    tokens = max(1, min(case.grid.frame_tokens, (most - before - after) // case.grid.frames))
    return VideoGrid(case.grid.frames, 1, tokens - (tokens % 2 == 0 and tokens > 1), before, after)


def random_inputs(case: Case, seed: int) -> Inputs:
    """q, k, v and an output gradient, standard normal, (B, N, H, D), drawn on the case's device."""
    generator = torch.Generator(case.device).manual_seed(seed)
    shape = (case.batch, case.grid.tokens, case.heads, case.head_dim)
    q, k, v, grad = (
        torch.randn(shape, generator=generator, device=case.device, dtype=torch.float32).to(case.dtype)
        for _ in range(4)
    )
    return q, k, v, grad


def _random(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Inputs:
    return q, k, v, grad


def _large_logits(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Inputs:
    """Scores of deviation 30: exp of the largest is far beyond every type's range unless the maximum is taken off."""
    return q * 30, k, v, grad


def _one_dominant_key(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Inputs:
    """The first token's key is along a direction that all queries share: nearly all weight lies on it where it's seen.

    The first token is text or of frame 0, which is global in the strided family; elsewhere only its own frame sees it.
    """
    towards = torch.ones_like(q[:1, :1])
    strong = k.clone()
    strong[:, 0] = 3
    return q + towards, strong, v, grad


def _equal_keys(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Inputs:
    """All keys are one: the output is the mean of the values seen, so a pair too many or too few shows."""
    return q, k[:, :1].expand_as(k).contiguous(), v, grad


INPUTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Inputs]] = {
    "random": _random,
    "large logits": _large_logits,
    "one dominant key": _one_dominant_key,
    "all-equal keys": _equal_keys,
}
"""What a kernel is judged on: changes of standard normal q, k, v and output gradient."""


def outputs(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    with_gradients: bool = True,
) -> dict[str, Tensor]:
    """Output of `attend(q, k, v)` and, if asked for, its gradients under the output gradient `grad`."""
    leaves = [x.detach().clone().requires_grad_(with_gradients) for x in (q, k, v)]
    out = attend(leaves[0], leaves[1], leaves[2])
    if not with_gradients:
        return {"out": out}
    dq, dk, dv = torch.autograd.grad(out, leaves, grad)
    return {"out": out, "dq": dq, "dk": dk, "dv": dv}


def relative_error(found: Tensor, truth: Tensor, least: float = 0.0) -> float:
    """Largest difference over the largest value of the truth, or over `least` where that is larger; NaN if any is."""
    largest = max(truth.abs().max().item(), least, torch.finfo(torch.float32).tiny)
    return (found.detach().double() - truth).abs().max().item() / largest


def frame_numbers(grid: VideoGrid, order: Order) -> Tensor:
    """The frame of each token in `order`, -1 for text: int64 (N,)."""
    numbers = torch.full((grid.tokens,), -1)
    for frame in range(grid.frames):
        places = grid.frame_range(frame)
        numbers[places.start : places.stop] = frame
    return torch.cat([numbers[places.start : places.stop] for places in order])


def sampled_rows(tokens: int) -> Tensor:
    """At most SAMPLED_ROWS token numbers, evenly spread, the first and the last among them."""
    return torch.linspace(0, tokens - 1, min(SAMPLED_ROWS, tokens), dtype=torch.float64).round().long()
