"""Rotary positions over (t, y, x): tables in float32 whatever the weights, and their use on queries and keys.

Letters: B batch, H heads, D head width, N tokens in (t, y, x) order. The head is cut into three equal parts, one an
axis; in each part the first half is paired with the second half. Source: Open-Sora-Plan v1.2.0, after arXiv 2104.09864.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdit_cli.errors import EvditError

BASE = 10000.0
AXES = 3


def axis_angles(length: int, width: int, scale: float, device: torch.device | str = "cpu") -> Tensor:
    """Angles (length, width / 2) of positions 0 .. length-1 on one axis, in radians, float32.

    `width` is the part of the head that this axis turns; positions are divided by `scale` (interpolation).
    Source: Eq. 15 of arXiv 2104.09864 with positions / scale.
    """
    frequencies = BASE ** -(torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    positions = torch.arange(length, device=device, dtype=torch.float32) / scale
    return torch.outer(positions, frequencies)


def rotary_tables(
    grid: tuple[int, int, int],
    head_dim: int,
    scales: tuple[float, float, float],
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for a (frames, rows, cols) grid, each (N, 1, 3, 1, D / 6) in float32.

    Raises EvditError when the head width does not divide by 6.
    """
    if head_dim % (2 * AXES):
        raise EvditError(
            f"attention_head_dim {head_dim} does not fit 3D rotary positions: it must be a multiple of {2 * AXES}"
        )
    part = head_dim // AXES
    per_axis = []
    for axis, (length, scale) in enumerate(zip(grid, scales, strict=True)):
        shape = [1, 1, 1, part // 2]
        shape[axis] = length
        per_axis.append(axis_angles(length, part, scale, device).view(shape).expand(*grid, part // 2))
    angles = torch.stack(per_axis, dim=3).reshape(-1, 1, AXES, 1, part // 2)
    return angles.cos(), angles.sin()


def rotate(x_BNHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x_BNHD` turned by its tokens' angles, computed in float32 and returned in the type of x.

    `cos` and `sin` come from `rotary_tables`. The dot product of two turned vectors depends on relative positions only.
    """
    x = x_BNHD.float().unflatten(-1, (AXES, 2, -1))
    # (first, second) -> (first cos - second sin, second cos + first sin): the halves change places, one with a minus.
    turned = torch.addcmul(x * cos, x.flip(-2), torch.cat((-sin, sin), dim=-2))
    return turned.flatten(-3).type_as(x_BNHD)
