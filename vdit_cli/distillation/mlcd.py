"""The loss of multi-step latent consistency distillation (docs/method.md): pure functions of predictions.

Letters: B batch, C channels, F latent frames, h, w latent height and width; t > u >= tau are times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vdit_cli.diffusion.consistency import pseudo_huber, reference, step, target_share, x0_weight
from vdit_cli.diffusion.guidance import combine
from vdit_cli.diffusion.milestones import signal_and_noise
from vdit_cli.diffusion.prediction import x0_from
from vdit_cli.diffusion.schedules import NoiseSchedule

Predict = Callable[[Tensor, Tensor], Tensor]
"""(noisy latents, timesteps (B,)) -> what the network predicts, in the shape of the latents."""


@dataclass(frozen=True)
class Networks:
    """The three networks of the loss: only `student` is trained; the other two are called without gradients."""

    student: Predict
    target: Predict
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
) -> dict[str, Tensor]:
    """The losses (B,) of latents x0 and noise eps (B, C, F, h, w) at `times` (t, u, tau), each (B,).

    With f(x, t) the x0 that a network tells: x_t = a_t x0 + s_t eps; x_u = D(x_t, f_teacher(x_t, t), t, u);
    x_ref = `reference` of the teacher and f_target(x_u, u), no gradient; loss = mean of `x0_weight` of this kind times
    pseudo-Huber_c(f_student(x_t, t) - x_ref). `distance` is the same without the weight, in the mean of |d|.
    """
    t, u, tau = times
    (a_t, s_t), (a_u, s_u), (a_tau, s_tau) = (signal_and_noise(schedule, each) for each in times)
    share = target_share(a_t, s_t, a_u, s_u, a_tau, s_tau, (u == tau).view_as(a_t)).to(x0)
    weight = x0_weight(kind, a_t, s_t, cap).to(x0)
    a_t, s_t, a_u, s_u = (each.to(x0) for each in (a_t, s_t, a_u, s_u))
    x_t = a_t * x0 + s_t * eps
    with torch.no_grad():
        from_teacher = x0_from(kind, networks.teacher(x_t, t).to(x0), x_t, a_t, s_t)
        x_u = step(x_t, from_teacher, a_t, s_t, a_u, s_u)
        # No network knows clean data's own time; where u is that, the target's share is 0.
        from_target = x0_from(kind, networks.target(x_u, u.clamp(min=0)).to(x0), x_u, a_u, s_u)
        x_ref = reference(from_teacher, from_target, share)
    difference = x0_from(kind, networks.student(x_t, t).to(x0), x_t, a_t, s_t) - x_ref
    return {
        "loss": (weight * pseudo_huber(difference, c)).flatten(1).mean(1),
        "distance": difference.detach().abs().flatten(1).mean(1),
    }
