"""The order of tokens, there and back, with gradients."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.closeness import assert_close
from tests.tiles.strategies import masks_on_grids
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.order import frame_ranges, from_order, inverse, to_order
from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import token_order
from vdit_cli.tiles.plan import MaskPlan


@given(masks_on_grids())
def test_there_and_back(case: tuple) -> None:
    """to_order takes the tokens of the ranges, from_order undoes it, and both have the gradient of an index."""
    order = token_order(*case)
    places = torch.tensor([token for piece in order for token in piece])
    x = torch.randn(2, len(places), 1, 2, requires_grad=True)
    weight = torch.randn_like(x)
    for moved, index in ((to_order(x, order), places), (from_order(x, order), places.argsort())):
        assert torch.equal(moved, x[:, index])
        (found,) = torch.autograd.grad(moved, x, weight)
        (wanted,) = torch.autograd.grad(x[:, index], x, weight)
        assert torch.equal(found, wanted)
    assert torch.equal(from_order(to_order(x, order), order), x)
    assert inverse(inverse(order)) == order


def test_its_own_order_costs_nothing() -> None:
    """One range: the same tensor, not a copy."""
    x = torch.zeros(1, 4, 1, 1)
    assert to_order(x, (range(4),)) is x and from_order(x, (range(4),)) is x


@pytest.mark.numerical
@settings(max_examples=30, deadline=None)
@given(masks_on_grids(), st.randoms(use_true_random=False))
def test_a_mask_bound_for_frames_in_another_order(case: tuple, random: Random) -> None:
    """Tokens held in any order of their frames: the same attention, each token's output in its own place."""
    mask, grid = case
    held = list(range(grid.frames))
    random.shuffle(held)
    q, k, v = (torch.randn(1, grid.tokens, 2, 8) for _ in range(3))
    before, after = range(grid.text_before), range(grid.tokens - grid.text_after, grid.tokens)
    order = tuple(piece for piece in (before, *map(grid.frame_range, held), after) if piece)
    attend = bind(mask, Case(grid, 2, 8, 1, torch.float32, torch.device("cpu")), "sdpa", tuple(held))
    found = from_order(attend(*(to_order(x, order) for x in (q, k, v))), order)
    assert_close(found, reference_attention(q, k, v, mask, grid), atol=1e-5)


def test_in_a_plans_order_nothing_is_gathered() -> None:
    """Each layer of a nest has one range, in its own order it has more."""
    masks = tuple(TileMask.from_stride(8, stride) for stride in (8, 4, 2))
    plan = MaskPlan("any", VideoGrid(8, 2, 3), masks)
    case = Case(plan.grid, 2, 8, 1, torch.float32, torch.device("cpu"))
    for mask in masks:
        assert bind(mask, case, "sdpa", plan.frame_order).order == (range(48),)
    assert len(bind(masks[1], case, "sdpa").order) > 1


def test_frames_are_put_in_order_and_back() -> None:
    """A dimension of frames, one by one."""
    x = torch.arange(4.0)[None, :, None]
    order = frame_ranges((2, 0, 3, 1))
    assert to_order(x, order).flatten().tolist() == [2, 0, 3, 1]
    assert torch.equal(from_order(to_order(x, order), order), x)
