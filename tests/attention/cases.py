"""Inputs for attention tests and the comparison with the float64 reference."""

import torch
from torch import Tensor

from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

RAGGED = [  # frames, global frames, rows x cols, text before and after, batch, heads, head width
    (1, (0,), (1, 1), (0, 0), 1, 1, 8),
    (1, (0,), (3, 5), (2, 4), 2, 2, 16),
    (8, (0,), (1, 1), (0, 0), 1, 3, 48),
    (8, (0,), (7, 9), (0, 0), 1, 6, 48),
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


def worst(
    found: dict[str, Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: TileMask, grid: VideoGrid
) -> dict:
    """Largest absolute difference of each of `found` from the float64 reference, relative where values exceed 1."""
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    truth = outputs(lambda *xs: reference_attention(*xs, mask, grid), *exact, grad)
    return {name: ((found[name] - truth[name]).abs() / truth[name].abs().clamp(min=1)).max().item() for name in truth}
