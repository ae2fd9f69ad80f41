"""Tokens put in the order of a mask's passes and back, as copies of a few slices; gradients go the other way.

Whole frames are put in order likewise. Letters: B batch, N tokens, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Order = tuple[range, ...]


def to_order(x_BNHD: Tensor, order: Order) -> Tensor:
    """The tokens of x in `order` (ranges of token numbers); x itself where the order is its own."""
    return x_BNHD if len(order) == 1 else _Taken.apply(x_BNHD, order)


def from_order(x_BNHD: Tensor, order: Order) -> Tensor:
    """The inverse of `to_order`."""
    return x_BNHD if len(order) == 1 else _Taken.apply(x_BNHD, inverse(order))


def frame_ranges(frame_order: tuple[int, ...]) -> Order:
    """An order of frames, one by one, as an order for `to_order` over a dimension of frames."""
    return tuple(range(frame, frame + 1) for frame in frame_order)


def inverse(order: Order) -> Order:
    """The order that undoes `order`."""
    starts, start = [], 0
    for places in order:
        starts.append(start)
        start += len(places)
    back = sorted(zip(order, starts, strict=True), key=lambda pair: pair[0].start)
    return tuple(range(start, start + len(places)) for places, start in back)


class _Taken(Function):
    """Slices put one behind the other. Autograd's own backward would fill a whole tensor with zeros for each slice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order) -> Tensor:
        """The slices of x in `order`."""
        ctx.order = order
        return torch.cat([x[:, places.start : places.stop] for places in order], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient's slices in the inverse order."""
        return _Taken.apply(grad, inverse(ctx.order)), None
