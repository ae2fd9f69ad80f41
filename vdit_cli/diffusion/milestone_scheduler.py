"""The sampler of distilled students: steps from milestone to milestone, in the interface of diffusers' schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vdit_cli.diffusion.consistency import step
from vdit_cli.diffusion.milestones import CLEAN, Milestones, signal_and_noise
from vdit_cli.diffusion.prediction import kind_of, x0_from
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.errors import EvditError


class MilestoneScheduler:
    """DDIM without noise through milestones (Euler where the model predicts a flow), ending on clean data.

    `milestones` in the config are a student's own timesteps, noisiest first, taken where so many steps are asked for;
    any other count is laid out as `Milestones` does.
    """

    init_noise_sigma = 1.0

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = SimpleNamespace(
            num_train_timesteps=config.get("num_train_timesteps", 1000), timestep_spacing="trailing"
        )
        self.schedule = NoiseSchedule.from_config(config)
        self.kind = kind_of(config.get("prediction_type", "epsilon"))
        self.milestones: Sequence[int] = config.get("milestones", ())
        if any(t >= self.schedule.timesteps for t in self.milestones):
            raise EvditError(
                f"milestone {max(self.milestones)} is not on the noise schedule of {self.schedule.timesteps} timesteps",
                where="sampler.json",
            )
        self.timesteps = torch.tensor([], dtype=torch.long)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MilestoneScheduler:
        """The scheduler for a model's scheduler_config.json."""
        return cls(config)

    def set_timesteps(self, steps: int) -> None:
        """Lay out `steps` timesteps, noisiest first."""
        own = len(self.milestones) == steps
        times = self.milestones if own else Milestones(steps, 1, self.schedule.timesteps).sampled
        self.timesteps = torch.tensor(times)

    def scale_model_input(self, x: Tensor, t: Tensor) -> Tensor:
        """x itself: the network reads latents as they are."""
        return x

    def step(self, output: Tensor, t: Tensor, x: Tensor) -> SimpleNamespace:
        """`prev_sample`: D(x, f(x, t), t, tau) for the network's `output` at the milestone t, tau the one below."""
        place = int((self.timesteps == t.cpu()).nonzero()[0, 0])
        below = self.timesteps[place + 1] if place + 1 < len(self.timesteps) else torch.tensor(CLEAN)
        (a_t, s_t), (a_u, s_u) = (
            (share.to(x) for share in signal_and_noise(self.schedule, time.cpu().view(1))) for time in (t, below)
        )
        x0 = x0_from(self.kind, output, x, a_t, s_t)
        return SimpleNamespace(prev_sample=step(x, x0, a_t, s_t, a_u, s_u))
