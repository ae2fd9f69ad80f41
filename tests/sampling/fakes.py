"""A backbone without weights: the exact network for Gaussian data whose mean the prompt gives."""

from __future__ import annotations

import math

import torch

from vdit_cli.backbones.base import TextStates
from vdit_cli.diffusion.prediction import DIFFUSERS_NAMES
from vdit_cli.diffusion.schedules import NoiseSchedule

DATA_STD = 0.5


class GaussianBackbone:
    """Data of "7" is N(7/10, DATA_STD^2) in each latent; the empty prompt means 0. Counts its calls and their sizes."""

    name = "gaussian"
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, prediction_type: str = "epsilon", **scheduler_config) -> None:
        self.scheduler_config = {"prediction_type": prediction_type, "timestep_spacing": "trailing", **scheduler_config}
        self.prediction = DIFFUSERS_NAMES[prediction_type]
        self.schedule = NoiseSchedule.from_config(self.scheduler_config)
        self.batches: list[int] = []

    def latent_shape(self, video_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        return 4, (video_frames - 1) // 4 + 1, height // 8, width // 8

    def encode_text(self, prompts):
        """The mean stands in the one real token; padding follows the longest prompt, as a tokenizer's may."""
        length = max(len(prompt) for prompt in prompts) + 1
        states = torch.zeros(len(prompts), length, 1)
        mask = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            states[row, 0] = float(prompt or 0) / 10
            mask[row, : len(prompt) + 1] = 1
        return TextStates(states, mask)

    def denoise(self, x_BCFhw, t_B, text):
        """E[eps | x] or E[v | x], by the closed form for a Gaussian."""
        self.batches.append(len(x_BCFhw))
        assert text.states_BLC.shape[:2] == text.mask_BL.shape
        assert len(text.states_BLC) == len(x_BCFhw) == len(t_B)
        a, s = self.schedule.at(t_B.long(), x_BCFhw)
        mean = text.states_BLC[:, 0].view(-1, 1, 1, 1, 1)
        noise = s * (x_BCFhw - a * mean) / (a**2 * DATA_STD**2 + s**2)
        if self.prediction == "eps":
            return noise
        return (noise - s * x_BCFhw) / a

    def ddim_path(self, x, mean: float, timesteps: list[int]):
        """Where DDIM steps through `timesteps` and then to clean data take x, written out in float64.

        With E[eps|x] = s (x - a m) / d^2, d^2 = a^2 std^2 + s^2, a step to (a', s') is affine:
        x' - a' m = (a'/a (1 - s^2/d^2) + s' s/d^2) (x - a m).
        """
        marginals = [(self.schedule.alphas[t].item(), self.schedule.sigmas[t].item()) for t in timesteps]
        gain = 1.0
        for (a, s), (a_next, s_next) in zip(marginals, [*marginals[1:], (1.0, 0.0)], strict=True):
            d2 = a * a * DATA_STD**2 + s * s
            gain *= a_next / a * (1 - s * s / d2) + s_next * s / d2
        assert math.isfinite(gain)
        return mean + gain * (x.double() - marginals[0][0] * mean)
