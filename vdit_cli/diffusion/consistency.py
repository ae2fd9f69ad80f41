"""The pure parts of the consistency loss: steps, the reference in x0-space, the distance and its weight.

x_t = a_t x0 + s_t eps; t > u >= tau are times, tau the milestone below t. Shares a and s broadcast against x.
Source: multi-step consistency models, arXiv 2403.06807; latent consistency with a guided teacher, arXiv 2310.04378.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdit_cli.diffusion.prediction import x0_gain


def step(x: Tensor, x0: Tensor, a_t: Tensor, s_t: Tensor, a_u: Tensor, s_u: Tensor) -> Tensor:
    """D(x, x0, t, u) = a_u x0 + (s_u / s_t) (x - a_t x0), the shape of x: from x at t to time u.

    A DDIM step without noise (Eq. 12 of arXiv 2010.02502 at sigma = 0); with a = 1 - s it is an Euler step.
    """
    return a_u * x0 + (s_u / s_t) * (x - a_t * x0)


def ahead(x0: Tensor, before: Tensor, shares: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The clean data that a step of second order takes: the one told, moved on as it has moved since the step before.

    x0 + h / (2 h_before) (x0 - before), h the way in log(a / s); `shares` are (a, s) at the time before, now and next.
    A way that begins at pure noise or ends on clean data has no length: there the step is of first order.
    Source: DPM-Solver++ 2M, arXiv 2211.01095, Eq. 9 and its final step.
    """
    last, now, after = (a.log() - s.log() for a, s in shares)
    share = (after - now) / (2 * (now - last))
    return x0 + share.where(share.isfinite(), torch.zeros_like(share)).to(x0) * (x0 - before)


def span(a_t: Tensor, s_t: Tensor, a_tau: Tensor, s_tau: Tensor) -> Tensor:
    """k(t, tau) = a_tau - a_t s_tau / s_t: how much a change of x0 moves the step from t to tau; 0 where t is tau."""
    return a_tau - a_t * s_tau / s_t


def target_share(
    a_t: Tensor, s_t: Tensor, a_u: Tensor, s_u: Tensor, a_tau: Tensor, s_tau: Tensor, u_is_tau: Tensor
) -> Tensor:
    """k(u, tau) / k(t, tau), in [0, 1]: the share of the target network in the reference.

    It is exactly 0 where u is tau, and 1 above a clean milestone, whose step is x0 itself. Take float64 shares: both
    spans are differences of near equals at high noise.
    """
    # At u = tau = CLEAN the noise s_u is 0; any other number there leaves the result 0 and spares a NaN.
    inside = span(a_u, s_u.masked_fill(u_is_tau, 1.0), a_tau, s_tau)
    return (inside / span(a_t, s_t, a_tau, s_tau)).masked_fill(u_is_tau, 0.0)


def reference(x0_teacher: Tensor, x0_target: Tensor, share: Tensor) -> Tensor:
    """The clean data that the student should tell at t: share * x0_target + (1 - share) * x0_teacher.

    This is x_ref = (z - (s_tau / s_t) x_t) / k(t, tau) of z = D(x_u, x0_target, u, tau) and x_u = D(x_t, x0_teacher,
    t, u), rewritten so that nothing is a difference of near equals: put x_u into z and collect the terms in x_t.
    """
    return share * x0_target + (1 - share) * x0_teacher


def pseudo_huber(difference: Tensor, c: float = 1e-3) -> Tensor:
    """sqrt(d^2 + c^2) - c of every element: d^2 / 2c near 0, |d| far from it. Source: arXiv 2310.14189.

    Written as d^2 / (sqrt(d^2 + c^2) + c), which is the same: a difference of near equals can be rounded below 0.
    """
    square = difference.square()
    return square / ((square + c * c).sqrt() + c)


def clipped_weight(a_t: Tensor, s_t: Tensor, cap: float = 5.0) -> Tensor:
    """min(SNR + 1, cap) with SNR = a^2 / s^2: the weight of an error in x0 at time t, for a network that tells v."""
    return ((a_t / s_t).square() + 1).clamp(max=cap)


def x0_weight(kind: str, a_t: Tensor, s_t: Tensor, cap: float = 5.0) -> Tensor:
    """The weight of an error in x0 at time t that pulls at any network's output as `clipped_weight` pulls at v's.

    That is clipped_weight * (s / x0_gain): times a for eps, whose x0 moves s / a for a change of the output (157 at
    t = 999 of a linear schedule), so that high noise would drown the rest; itself for v and flow [ours: docs/method.md
    has the gradients of each segment].
    """
    return clipped_weight(a_t, s_t, cap) * (s_t / x0_gain(kind, a_t, s_t))
