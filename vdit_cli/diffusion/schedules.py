"""The noise of diffusion, x_t = alpha_t x0 + sigma_t eps: alpha^2 + sigma^2 = 1, or alpha = 1 - sigma.

Letters: B batch, T timesteps of the table (1000 in each model here), index t = 0 the cleanest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from vdit_cli.reader import Index, shaped


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Tensor:
    """`steps` variances from `start` to `end`, evenly apart, float64. Source: arXiv 2006.11239, section 4."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Tensor:
    """`steps` variances whose square roots are evenly apart, float64. Source: latent diffusion, arXiv 2112.10752."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}
"""Beta schedules by the name that diffusers' `scheduler_config.json` gives them."""


SPACINGS = ("leading", "linspace", "trailing")
"""How diffusers' schedulers may lay out timesteps."""
MOST_TIMESTEPS = 100_000
"""Of a noise table [ours; a hundred times that of any published model]."""


Beta = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True)
class ScheduleForm:
    """What is read of a `scheduler_config.json`, and what it means where a key is missing."""

    beta_schedule: Literal["linear", "scaled_linear"] = "linear"
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    prediction_type: Literal["epsilon", "v_prediction", "flow_prediction"] = "epsilon"
    num_train_timesteps: Annotated[int, Ge(1), Le(MOST_TIMESTEPS)] = 1000
    steps_offset: Index = 0
    beta_start: Beta = 1e-4
    beta_end: Beta = 2e-2
    shift: Annotated[float, Gt(0)] = 1.0
    trained_betas: None = None
    rescale_betas_zero_snr: Literal[False] | None = None

    def __post_init__(self) -> None:
        if self.steps_offset >= self.num_train_timesteps:
            most = self.num_train_timesteps - 1
            raise ValueError(f"steps_offset is {self.steps_offset}: it must be a whole number of at most {most}")

    @classmethod
    def of(cls, config: dict, where: str = "scheduler_config.json") -> ScheduleForm:
        """Of a config. Raises EvditError (exit 2), naming the file `where` and the key, for what it can't mean."""
        return shaped(cls, config, where, "schedule", is_open=True)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Look-up tables `alphas` and `sigmas`, float64 (T,): the share of signal and of noise at each timestep index."""

    alphas: Tensor
    sigmas: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """The schedule of per-step variances `betas` (T,): alpha_t^2 = prod_{s<=t} (1 - beta_s)."""
        alphas_squared = torch.cumprod(1.0 - betas.double(), dim=0)
        return cls(alphas_squared.sqrt(), (1.0 - alphas_squared).sqrt())

    @classmethod
    def straight(cls, steps: int, shift: float = 1.0) -> NoiseSchedule:
        """Flow matching: sigma_i = shift w / (1 + (shift - 1) w) with w = (i + 1) / T, and alpha_i = 1 - sigma_i.

        Source: arXiv 2210.02747 with time running towards noise; the shift, arXiv 2403.03206.
        """
        w = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        sigmas = shift * w / (1 + (shift - 1) * w)
        return cls(1 - sigmas, sigmas)

    @classmethod
    def from_config(cls, config: dict) -> NoiseSchedule:
        """The schedule that a diffusers `scheduler_config.json` describes (missing keys: linear, 1e-4 to 2e-2, 1000).

        A model that predicts a flow has the straight path, with the config's `shift`. Raises EvditError for a beta
        schedule that is not in `BETAS`, given betas, or betas rescaled to zero SNR.
        """
        form = ScheduleForm.of(config)
        if form.prediction_type == "flow_prediction":
            return cls.straight(form.num_train_timesteps, form.shift)
        return cls.from_betas(BETAS[form.beta_schedule](form.num_train_timesteps, form.beta_start, form.beta_end))

    @property
    def timesteps(self) -> int:
        """T, the number of entries; the noisiest index is T - 1."""
        return len(self.alphas)

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same tables on `device`, so that look-ups in a loop there copy nothing."""
        return NoiseSchedule(self.alphas.to(device), self.sigmas.to(device))

    def at(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at integer timesteps t, each (B, 1, 1, 1, 1) in the dtype and on the device of `like`."""
        index = t_B.to(self.alphas.device)
        shape = (-1, 1, 1, 1, 1)
        return (
            self.alphas[index].view(shape).to(like.device, like.dtype),
            self.sigmas[index].view(shape).to(like.device, like.dtype),
        )

    def snr(self, t_B: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2 at integer timesteps t, (B,) float64 on the device of t."""
        index = t_B.to(self.alphas.device)
        return (self.alphas[index] / self.sigmas[index]).square().to(t_B.device)
