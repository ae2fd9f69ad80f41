"""The loss of multi-step latent consistency distillation (docs/method.md): pure functions of predictions.

Letters: B batch, C channels, F latent frames, h, w latent height and width; t > u >= tau are times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vdit_cli.diffusion.consistency import ahead, pseudo_huber, reference, step, target_share, x0_weight
from vdit_cli.diffusion.guidance import combine
from vdit_cli.diffusion.milestones import signal_and_noise
from vdit_cli.diffusion.prediction import x0_from
from vdit_cli.diffusion.schedules import NoiseSchedule

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents, timesteps (B,)) -> what the network predicts, in the shape of the latents."""


class Answer(NamedTuple):
    """Where a teacher led noisy latents: to x_u, and the x0 whose one step lands there, both (B, C, F, h, w)."""

    x0: Tensor
    x_u: Tensor


Kept = Callable[[Callable[[], Answer]], Answer]
"""How a teacher is asked -> its answer, of now or of before."""


def asked(ask: Callable[[], Answer]) -> Answer:
    """The answer of now."""
    return ask()


@dataclass(frozen=True)
class Networks:
    """The networks of the loss: only `student` is trained; the others are called without gradients.

    Without a `target` the teacher alone is learned from: right where its point is the segment's end, whose share is 0.
    """

    student: Predict
    target: Predict | None
    teacher: Predict


def guided(predict_both: Predict, w: float) -> Predict:
    """A network with classifier-free guidance w inside: y = y(null) + w (y(c) - y(null)).

    `predict_both` takes and returns 2 B rows, those with the caption first.
    """

    def predict(x_BCFhw: Tensor, t_B: Tensor) -> Tensor:
        cond, null = predict_both(torch.cat([x_BCFhw, x_BCFhw]), torch.cat([t_B, t_B])).chunk(2)
        return combine(cond, null, w)

    return predict


def mlcd_losses(
    networks: Networks,
    kind: str,
    schedule: NoiseSchedule,
    x0: Tensor,
    eps: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    *,
    cap: float = 5.0,
    c: float = 1e-3,
    substeps: int = 1,
    kept: Kept = asked,
) -> dict[str, Tensor]:
    """The losses (B,) of latents x0 and noise eps (B, C, F, h, w) at `times` (t, u, tau), each (B,).

    With f(x, t) the x0 that a network tells: x_t = a_t x0 + s_t eps; x_u = D(x_t, f_teacher(x_t, t), t, u), or where
    so many `substeps` of second order lead; x_ref = `reference` of the teacher and f_target(x_u, u), no gradient;
    loss = mean of `x0_weight` of this kind times
    pseudo-Huber_c(f_student(x_t, t) - x_ref). `distance` is the same without the weight, in the mean of |d|.
    `kept` is given how the teacher is asked, and may have its answer already.
    """
    t, u, tau = times
    (a_t, s_t), (a_u, s_u), (a_tau, s_tau) = (signal_and_noise(schedule, each) for each in times)
    share = target_share(a_t, s_t, a_u, s_u, a_tau, s_tau, (u == tau).view_as(a_t)).to(x0)
    weight = x0_weight(kind, a_t, s_t, cap).to(x0)
    a_t, s_t, a_u, s_u = (each.to(x0) for each in (a_t, s_t, a_u, s_u))
    x_t = a_t * x0 + s_t * eps
    with torch.no_grad():
        from_teacher, x_u = kept(lambda: straight(networks.teacher, kind, schedule, x_t, t, u, substeps))
        x_ref = from_teacher
        if networks.target is not None:
            # No network knows clean data's own time; where u is that, the target's share is 0.
            from_target = x0_from(kind, networks.target(x_u, u.clamp(min=0)).to(x0), x_u, a_u, s_u)
            x_ref = reference(from_teacher, from_target, share)
    difference = x0_from(kind, networks.student(x_t, t).to(x0), x_t, a_t, s_t) - x_ref
    return {
        "loss": (weight * pseudo_huber(difference, c)).flatten(1).mean(1),
        "distance": difference.detach().abs().flatten(1).mean(1),
    }


def straight(
    predict: Predict,
    kind: str,
    schedule: NoiseSchedule,
    x_t: Tensor,
    t_B: Tensor,
    u_B: Tensor,
    steps: int,
    *,
    order: int = 2,
) -> Answer:
    """Where so many steps lead from x_t (B, C, F, h, w) to times u, and the x0 whose one step from t lands there.

    The steps are as even as whole timesteps can be; t - u must be at least as many. Order 1 is DDIM; in order 2 all but
    the first and one onto clean data go by `ahead`. Each begins at the x before, and the x0 of neighbouring steps
    become one as those of teacher and target do in `reference`.
    """
    times = [t_B - (2 * i * (t_B - u_B) + steps) // (2 * steps) for i in range(steps + 1)]
    shares = [signal_and_noise(schedule, each) for each in times]
    (a_t, s_t), x, x0, before = shares[0], x_t, x_t, x_t
    for i, (time, (a, s), (a_next, s_next)) in enumerate(zip(times, shares, shares[1:], strict=False)):
        told = x0_from(kind, predict(x, time).to(x_t), x, a.to(x_t), s.to(x_t))
        taken = ahead(told, before, shares[i - 1 : i + 2]) if i and order == 2 else told
        none = torch.zeros_like(a, dtype=torch.bool)
        x0 = reference(x0, taken, target_share(a_t, s_t, a, s, a_next, s_next, none).to(x_t)) if i else taken
        x = step(x, taken, *(each.to(x_t) for each in (a, s, a_next, s_next)))
        before = told
    return Answer(x0, x)
