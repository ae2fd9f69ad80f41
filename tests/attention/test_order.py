"""The order of tokens, there and back, with gradients."""

import torch
from hypothesis import given

from tests.tiles.strategies import masks_on_grids
from vdit_cli.attention.order import from_order, inverse, to_order
from vdit_cli.tiles.passes import token_order


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
