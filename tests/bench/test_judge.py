"""The judge: what is right passes, and every way to be wrong that was thought of does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.closeness import assert_within
from vdit_cli.attention.bind import Case
from vdit_cli.attention.reference import reference_attention
from vdit_cli.bench.contenders import Bound, Contender, dense_contenders, tile_contender
from vdit_cli.bench.judge import (
    INPUTS,
    SAMPLED,
    SAMPLED_ROWS,
    TOLERANCE,
    Verdict,
    frame_numbers,
    judge_rows,
    judge_small,
    random_inputs,
    sampled_rows,
    small_grid,
)
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import token_order

CPU = torch.device("cpu")
MASK = TileMask(6, (0, 3))
GRID = VideoGrid(6, 5, 9, text_after=4)


def case(dtype: torch.dtype = torch.float32, grid: VideoGrid = GRID) -> Case:
    """Two heads of 16 on `grid`."""
    return Case(grid, 2, 16, 1, dtype, CPU)


def contender(change: Callable[[Tensor], Tensor] = lambda out: out, mask: TileMask = MASK) -> Contender:
    """The reference itself computed in the case's type, its output changed; judged against MASK."""

    def ready(asked: Case) -> Bound:
        def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return change(reference_attention(q, k, v, mask, asked.grid).to(q.dtype))

        return Bound(call, (range(asked.grid.tokens),))

    return Contender("stand-in", MASK, ready)


def shares(verdict: Verdict) -> dict[str, float]:
    """The errors by what passes."""
    return {name: error / verdict.allowed[name] for name, error in verdict.errors.items()}


@pytest.mark.numerical
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_what_is_right_passes(dtype: torch.dtype):
    """The kernel of torch's own calls and every dense way of the CPU, outputs and gradients on all inputs.

    In half types the reference, rounded: by how much more a kernel is off depends on the processor.
    """
    kernels = (*dense_contenders(6, CPU), tile_contender("sdpa", MASK))
    for each in kernels if dtype == torch.float32 else (contender(),):
        verdict = judge_small(each, case(dtype), seed=0)
        assert verdict.passed, (each.name, verdict.errors)
        others = judge_small(contender(mask=TileMask(6, (0,))), case(dtype), seed=0)
        assert_within(shares(verdict), 1, planted=shares(others), told=each.name)
        assert set(verdict.errors) == {f"{name} {part}" for name in INPUTS for part in ("out", "dq", "dk", "dv")}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "frames",
    [tuple(range(6)), (0,), (0, 2), (0, 3, 5)],
    ids=["full", "one less", "another", "one more"],
)
def test_another_mask_does_not_pass(dtype: torch.dtype, frames: tuple[int, ...]):
    """A frame too many, too few, or the wrong one, in every type: on a small grid and on sampled rows."""
    wrong = contender(mask=TileMask(6, frames))
    assert not judge_small(wrong, case(dtype), seed=0).passed
    q, k, v, _ = random_inputs(case(dtype), 0)
    bound = wrong.ready(case(dtype))
    assert not judge_rows(bound, bound.call(q, k, v), [q, k, v], MASK, GRID).passed


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out * 1.05,
        lambda out: torch.zeros_like(out) + 0 * out,
        lambda out: out.flip(1),
        lambda out: out.flip(2),
        lambda out: torch.where(torch.arange(out.shape[1])[:, None, None] == out.shape[1] - 1, torch.nan, out),
    ],
    ids=["scaled", "nothing", "tokens turned", "heads turned", "NaN in the last token"],
)
def test_a_wrong_output_does_not_pass(change: Callable[[Tensor], Tensor]):
    """Scale, order of tokens or heads, and one NaN."""
    wrong = contender(change)
    assert not judge_small(wrong, case(), seed=0).passed
    q, k, v, _ = random_inputs(case(), 0)
    bound = wrong.ready(case())
    verdict = judge_rows(bound, bound.call(q, k, v), [q, k, v], MASK, GRID)
    assert not verdict.passed and verdict.worst == SAMPLED


@pytest.mark.numerical
def test_a_wrong_gradient_does_not_pass():
    """A right output whose gradient does not flow through half of the heads."""

    def half(out: Tensor) -> Tensor:
        return torch.cat([out[:, :, :1], out[:, :, 1:].detach()], dim=2)

    verdict = judge_small(contender(half), case(), seed=0)
    assert not verdict.passed
    outs = {name: verdict.errors[f"{name} out"] for name in INPUTS}
    assert_within(outs, TOLERANCE[torch.float32], planted=verdict.errors["random dv"])


@pytest.mark.numerical
def test_an_overflow_on_large_logits_is_found():
    """Softmax without taking off the maximum: right on normal inputs, NaN on large ones."""

    def naive(q: Tensor, k: Tensor, v: Tensor, grid: VideoGrid) -> Tensor:
        kept = torch.from_numpy(MASK.token_mask(grid))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        weights = scores.exp() * kept
        return torch.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdim=True), v)

    def ready(asked: Case) -> Bound:
        return Bound(partial(naive, grid=asked.grid), (range(asked.grid.tokens),))

    verdict = judge_small(Contender("naive", MASK, ready), case(), seed=0)
    assert not verdict.passed and verdict.worst.startswith("large logits")
    known = {part: verdict.errors[f"random {part}"] for part in ("out", "dq", "dk", "dv")}
    others = judge_small(contender(mask=TileMask(6, (0,))), case(), seed=0)
    assert_within(known, TOLERANCE[torch.float32], planted=others.errors["random out"])


def test_a_kernel_without_backward_is_judged_forward_only():
    """It is timed forward, and refused where gradients are asked for."""
    right = contender()
    forward = Contender("forward", MASK, lambda asked: "no gradients" if asked.needs_grad else right.ready(asked))
    verdict = judge_small(forward, case(), seed=0)
    assert isinstance(verdict, Verdict) and verdict.passed
    assert set(verdict.errors) == {f"{name} out" for name in INPUTS}
    asked = Case(GRID, 2, 16, 1, torch.float32, CPU, needs_grad=True)
    assert judge_small(forward, asked, seed=0) == "it has no backward"


def test_sampled_rows_in_pass_order_name_their_frames():
    """Frames by token, against the grid itself; rows reach from the first token to the last, each once."""
    order = token_order(MASK, GRID)
    numbers = frame_numbers(GRID, order).tolist()
    tokens = [token for places in order for token in places]
    assert numbers == [-1 if (frame := GRID.frame_of(token)) is None else frame for token in tokens]
    rows = sampled_rows(86_400)
    assert len(rows) == len(rows.unique()) == SAMPLED_ROWS and (rows[0], rows[-1]) == (0, 86_399)
    assert sampled_rows(5).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "grid", [VideoGrid(8, 45, 80), VideoGrid(13, 30, 45, 226), VideoGrid(256, 4, 4), VideoGrid(2, 1, 1)], ids=str
)
def test_the_small_grid_has_the_same_frames(grid: VideoGrid):
    """As many frames, an odd number of tokens each, at most 2,048 tokens in all."""
    small = small_grid(case(grid=grid))
    assert small.frames == grid.frames and small.frame_tokens % 2 == 1 and small.tokens <= 2048
    assert (small.text_before > 0) == (grid.text_before > 0)


def test_the_worst_is_told_and_nan_is_worst():
    """By its share of what passes, not by its size."""
    verdict = Verdict({"a": 0.5, "b": 0.1}, {"a": 1.0, "b": 0.05})
    assert (verdict.worst, verdict.passed) == ("b", False)
    assert Verdict({"a": float("nan"), "b": 9.0}, {"a": 1.0, "b": 1.0}).worst == "a"
