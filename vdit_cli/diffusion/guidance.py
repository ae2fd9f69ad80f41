"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor


def combine(cond: Tensor, null: Tensor, w: float) -> Tensor:
    """null + w (cond - null), in the shape of both; w = 1 is the conditional prediction alone.

    Source: Ho and Salimans, arXiv 2207.12598, Eq. 6, whose w is ours less one.
    """
    return null + w * (cond - null)
