"""Inputs for attention tests and the comparison with the float64 reference."""

import torch
from torch import Tensor

from tests.closeness import assert_close
from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

RAGGED = [  # frames, global frames, rows x cols, text before and after, batch, heads, head width
    (1, (0,), (1, 1), (0, 0), 1, 1, 8),
    (1, (0,), (3, 5), (2, 4), 2, 2, 16),
    (8, (0,), (1, 1), (0, 0), 1, 3, 48),
    (8, (0,), (7, 9), (0, 0), 1, 2, 48),
    (8, (0, 4), (7, 9), (0, 0), 2, 2, 24),
    (8, (0, 2, 4, 6), (3, 3), (0, 7), 2, 2, 40),
    (8, (0, 3, 6), (3, 3), (5, 0), 3, 1, 96),
    (8, (7,), (2, 5), (1, 1), 1, 2, 64),
    (8, tuple(range(8)), (3, 5), (3, 2), 2, 2, 16),
    (5, (1, 2), (1, 1), (0, 1), 2, 2, 7),
    (2, (1,), (4, 4), (3, 0), 1, 2, 8),
    (3, (0,), (27, 50), (0, 11), 1, 1, 12),
]


def inputs(mask: TileMask, grid: VideoGrid, batch: int, heads: int, width: int, **kind: object) -> list[Tensor]:
    """q, k, v and the output's gradient, normal, (B, N, H, D); the first three want gradients."""
    shape = (batch, grid.tokens, heads, width)
    generator = torch.Generator().manual_seed(hash((mask, grid, shape)) % 2**31)
    made = [torch.randn(shape, generator=generator).to(**kind) for _ in range(4)]  # type: ignore[call-overload]
    return [x.requires_grad_() for x in made[:3]] + [made[3]]


def outputs(attend: object, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """Output and gradients of `attend(q, k, v)` under the output gradient `grad`."""
    out = attend(q, k, v)  # type: ignore[operator]
    names = ("out", "dq", "dk", "dv")
    return dict(zip(names, (out, *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))), strict=True))


def assert_right(
    found: dict[str, Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    mask: TileMask,
    grid: VideoGrid,
    atol: float,
) -> None:
    """Within `atol`, absolute and relative, of the float64 reference; a mask that is dropped is not."""
    truth = _reference(q, k, v, grad, mask, grid)
    dropped = _reference(q, k, v, grad, TileMask.dense(mask.frames), grid)
    planted = {name: 2 * x for name, x in truth.items()} if mask.is_dense else dropped
    assert_close(found, truth, atol=atol, rtol=atol, planted=planted, told=f"{mask} on {grid}")


def assert_right_to_rounding(
    found: dict[str, Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: TileMask, grid: VideoGrid, eps: float
) -> None:
    """Within what rounding by `eps` makes of these numbers, however large; values moved by one token are not.

    A score rounds by eps of the sum of its terms without their signs; so much does its weight change, and then all that
    is summed with that weight. The largest element of each part tells its bound.
    """
    exact = [x.detach().double().transpose(1, 2) for x in (q, k, v, grad)]
    kept = torch.from_numpy(mask.token_mask(grid)).to(q.device)
    scale = q.shape[-1] ** -0.5
    weights = (exact[0] @ exact[1].mT * scale).masked_fill(~kept, float("-inf")).softmax(-1)
    q_size, k_size, v_size, grad_size = (x.abs() for x in exact)
    rounds = eps * (1 + (q_size @ k_size.mT * scale).masked_fill(~kept, 0).amax(-1, keepdim=True))
    changes = weights * (grad_size @ v_size.mT + (grad_size * (weights @ v_size)).sum(-1, keepdim=True))
    errors = {
        "out": rounds * (weights @ v_size),
        "dq": rounds * scale * (changes @ k_size),
        "dk": scale * (rounds * changes).mT @ q_size,
        "dv": weights.mT @ (rounds * grad_size),
    }
    bounds = {name: max(x.max().item(), 1e-30) for name, x in errors.items()}
    truth, planted = (_reference(q, k, x, grad, mask, grid) for x in (v, v.roll(1, 1)))
    found, truth, planted = ({n: x / bounds[n] for n, x in parts.items()} for parts in (found, truth, planted))
    assert_close(found, truth, atol=1, planted=planted)


def _reference(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: TileMask, grid: VideoGrid) -> dict[str, Tensor]:
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    return outputs(lambda *xs: reference_attention(*xs, mask, grid), *exact, grad)
