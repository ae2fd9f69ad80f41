"""Under autocast tile attention computes in the type that torch's own attention does there, whatever the mask."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.closeness import assert_close
from vdit_cli.attention import bind as bind_module
from vdit_cli.attention.bind import Attend, Case, bind, tile_attention
from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

pytestmark = pytest.mark.numerical

GRID, HEADS, WIDTH = VideoGrid(8, 1, 3), 2, 16
MASKS = ("2:6", "8:0")
MIXED = (torch.float32, torch.float32, torch.bfloat16)
NEAR = {"rtol": 5e-2, "atol": 5e-2}


def operands(*dtypes: torch.dtype) -> list[Tensor]:
    """q, k, v of these types that want gradients."""
    random = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, GRID.tokens, HEADS, WIDTH, generator=random) for _ in dtypes]
    return [x.to(dtype).requires_grad_() for x, dtype in zip(drawn, dtypes, strict=True)]


def bound(name: str, dtype: torch.dtype) -> Attend:
    """A mask for calls of a type."""
    case = Case(GRID, HEADS, WIDTH, 2, dtype, torch.device("cpu"), needs_grad=True)
    return bind(TileMask.parse(name, 8), case, "sdpa")


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtypes", [MIXED, (torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.float64,) * 3], ids=str)
def test_the_type_is_that_of_torchs_own_attention(name: str, dtypes: tuple[torch.dtype, ...]):
    """Bound in one line, or before for one of the types; values as the reference's, and a gradient of each operand."""
    mask, inputs = TileMask.parse(name, 8), operands(*dtypes)
    with torch.autocast("cpu", torch.bfloat16):
        own = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs))
        found = [tile_attention(*inputs, mask, GRID, "sdpa"), bound(name, dtypes[0])(*inputs)]
    expected = reference_attention(*(x.detach().double() for x in inputs), mask, GRID)
    for out in found:
        assert out.dtype == own.dtype
        assert_close(out.double(), expected, **NEAR)
        for x, gradient in zip(inputs, torch.autograd.grad(out.sum(), inputs), strict=True):
            assert gradient.dtype == x.dtype and gradient.abs().sum() > 0


@pytest.mark.parametrize("name", MASKS)
def test_mixed_types_are_refused_outside_of_it(name: str):
    """As torch's own attention does."""
    with pytest.raises(ValueError, match="q, k, v differ"):
        bound(name, torch.float32)(*operands(*MIXED))


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_bound_once(name: str, monkeypatch: pytest.MonkeyPatch):
    """For autocast's type when it is first called there, and never again, at any batch; the one-line form likewise."""
    inputs, attend, bindings = operands(*(torch.float32,) * 3), bound(name, torch.float32), []
    bind_module._bound.cache_clear()
    monkeypatch.setattr(bind_module, "bind", lambda *asked: bindings.append(asked) or bind(*asked))
    with torch.autocast("cpu", torch.bfloat16):
        for batch in (2, 1, 2):
            attend(*(x[:batch] for x in inputs))
    assert len(bindings) == 1
    for batch in (2, 1, 2):
        tile_attention(*(x[:batch] for x in inputs), TileMask.parse(name, 8), GRID, "sdpa")
    assert len(bindings) == 2
