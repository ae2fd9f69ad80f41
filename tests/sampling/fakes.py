"""A backbone without weights: the exact network for Gaussian data whose mean the prompt gives."""

from __future__ import annotations

import math
from contextlib import contextmanager

import torch

from vdit_cli.attention.bind import Case, bind
from vdit_cli.backbones.base import Defaults, TextStates
from vdit_cli.diffusion.prediction import DIFFUSERS_NAMES
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.errors import EvditError
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid

DATA_STD = 0.5


class GaussianBackbone:
    """Data of "7" is N(7/10, DATA_STD^2) in each latent; the empty prompt means 0. Counts its calls and their sizes."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, prediction_type: str = "epsilon", **scheduler_config) -> None:
        self.scheduler_config = {"prediction_type": prediction_type, "timestep_spacing": "trailing", **scheduler_config}
        self.prediction = DIFFUSERS_NAMES[prediction_type]
        self.schedule = NoiseSchedule.from_config(self.scheduler_config)
        self.batches: list[int] = []
        self.loads: list[str] = []
        self.bytes_of = {"text": 3000, "transformer": 2000, "vae": 1000}

    def latent_shape(self, video_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        if (video_frames - 1) % 4 or height % 16 or width % 16:
            raise EvditError(f"{video_frames} x {height} x {width} does not fit", where=f"--frames {video_frames}")
        return 4, (video_frames - 1) // 4 + 1, height // 8, width // 8

    def encode_text(self, prompts):
        """The mean stands in the one real token; padding follows the longest prompt, as a tokenizer's may."""
        length = max(len(prompt) for prompt in prompts) + 1
        states = torch.zeros(len(prompts), length, 1)
        mask = torch.zeros(len(prompts), length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            states[row, 0] = float("".join(filter(str.isdigit, prompt)) or 0) / 10
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

    name = "gaussian"
    architecture = Architecture("Gaussian", 2, 2, 6)
    weights_digest = "feed" * 16
    lineage = ("beef" * 16,)
    defaults = Defaults(
        video_frames=5, height=32, width=48, fps=8, steps=4, guidance=2.0, scheduler="ddim", negative=""
    )
    attends = ()

    @contextmanager
    def resident(self, part):
        self.loads.append(part)
        yield

    def grid(self, video_frames, height, width, text_tokens=0):
        _, frames, rows, cols = self.latent_shape(video_frames, height, width)
        return VideoGrid(frames, rows // 2, cols // 2, text_after=text_tokens)

    def part_bytes(self, part):
        return self.bytes_of[part]

    def working_bytes(self, part, batch, video_frames, height, width, vae_tiling):
        """A byte a pixel and video; tiles of the VAE are a quarter of it."""
        return batch * video_frames * height * width // (4 if part == "vae" and vae_tiling else 1)

    def unknown_words(self, prompt):
        words = prompt.split()
        known = tuple(word for word in words if word.isdigit())
        return known, tuple(word for word in words if not word.isdigit())

    def apply_plan(self, plan, batch, kernel="auto", needs_grad=False, costs=None, dtype=None):
        case = Case(plan.grid, 2, 6, batch, dtype or self.dtype, self.device, needs_grad)
        self.attends = tuple(bind(mask, case, kernel, costs=costs) for mask in plan.masks)
        return self.attends

    def decode_video(self, latents_BCFhw):
        """Each latent as a block of 4 frames x 8 x 8 pixels, the first latent frame as one frame."""
        video = latents_BCFhw[:, :3].repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.cat([video[:, :, :1], video[:, :, 1:].repeat_interleave(4, 2)], 2).clamp(-1, 1)
