"""Which derivatives there are: each is right, or refused in words that name what has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.attention.cases import inputs
from vdit_cli.attention.bind import tile_attention
from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

GRID = VideoGrid(4, 1, 2, text_after=1)
MASKS = (TileMask(4, (0,)), TileMask(4, (1, 3)))
KERNELS = [("sdpa", mask) for mask in MASKS] + [("triton", mask) for mask in (*MASKS, TileMask.dense(4))]
INSTEAD = "reference_attention"

Loss = Callable[[Tensor], Tensor]


@pytest.fixture(params=KERNELS, ids=lambda case: f"{case[0]} {case[1].name}")
def attend(request: pytest.FixtureRequest) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Tile attention by each kernel of ours that this machine has; alone a full mask by sdpa is torch's own."""
    kernel, mask = request.param
    device = "cuda" if kernel == "triton" and torch.cuda.is_available() else "cpu"
    return lambda *qkv: tile_attention(*(x.to(device) for x in qkv), mask, GRID, kernel).cpu()


@pytest.mark.parametrize("loss", [Tensor.sum, lambda out: out.square().sum()], ids=["linear", "square"])
@pytest.mark.parametrize("frozen", [False, True])
def test_second_derivatives_are_refused(attend, loss: Loss, frozen: bool):
    """Be the gradient of the output a constant or not, and whatever of q, k, v is asked for."""
    q, k, v, _ = inputs(MASKS[0], GRID, 1, 2, 16)
    if frozen:
        k, v = k.detach(), v.detach()
    (dq,) = torch.autograd.grad(loss(attend(q, k, v)), q, create_graph=True)
    for wanted in [q] if frozen else [q, k, v]:
        with pytest.raises(RuntimeError, match=f"no second derivatives.*{INSTEAD}"):
            torch.autograd.grad(dq.sum(), wanted, retain_graph=True)


def test_the_first_derivative_is_the_same_with_and_without_a_graph(attend):
    """And without one it is a constant, as ever."""
    q, k, v, grad = inputs(MASKS[0], GRID, 1, 2, 16)
    plain = torch.autograd.grad(attend(q, k, v), (q, k, v), grad)
    graph = torch.autograd.grad(attend(q, k, v), (q, k, v), grad, create_graph=True)
    assert all(torch.equal(x, y) for x, y in zip(plain, graph, strict=True))
    assert not any(x.requires_grad for x in plain) and all(x.requires_grad for x in graph)


def test_forward_mode_is_refused(attend):
    """Whichever operand has a tangent, and by torch.func too; outside of it nothing is."""
    operands = [x.detach() for x in inputs(MASKS[0], GRID, 1, 2, 16)[:3]]
    for place in range(3):
        with forward_ad.dual_level():
            given = [forward_ad.make_dual(x, x) if i == place else x for i, x in enumerate(operands)]
            with pytest.raises(RuntimeError, match=f"forward mode.*{INSTEAD}"):
                attend(*given)
    with pytest.raises(RuntimeError, match=f"forward mode.*{INSTEAD}"):
        torch.func.jvp(attend, tuple(operands), tuple(operands))
    with forward_ad.dual_level():
        assert attend(*operands).shape == operands[0].shape


@pytest.mark.numerical
@pytest.mark.parametrize("mask", [*MASKS, TileMask.dense(4)], ids=str)
def test_the_reference_has_every_derivative(mask: TileMask):
    """By finite differences, in float64: first and second ones, backward and forward."""
    operands = inputs(mask, GRID, 1, 1, 2, dtype=torch.float64)[:3]

    def attend(*xs: Tensor) -> Tensor:
        return reference_attention(*xs, mask, GRID)

    assert torch.autograd.gradcheck(attend, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(attend, operands)


@pytest.mark.numerical
def test_a_full_mask_keeps_the_derivatives_of_torchs_own_attention():
    """By sdpa it is that attention: with its mathematical kernel, second derivatives and forward mode are right."""
    mask = TileMask.dense(4)
    operands = inputs(mask, GRID, 1, 1, 2, dtype=torch.float64)[:3]
    with sdpa_kernel(SDPBackend.MATH):
        attend = lambda *xs: tile_attention(*xs, mask, GRID, "sdpa")  # noqa: E731
        assert torch.autograd.gradcheck(attend, operands, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(attend, operands)
