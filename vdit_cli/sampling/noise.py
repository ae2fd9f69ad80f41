"""Noise of a video from the video's own seed, so that it does not depend on which videos share its batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def generators_for(seeds: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator a video, each set to its seed; the CPU's stream is the same on every device."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def initial_noise(
    shape_CFhw: tuple[int, int, int, int], generators: Sequence[torch.Generator], device: torch.device | str
) -> Tensor:
    """Standard normal latents (B, C, F, h, w), float32 on `device`, video b drawn from `generators[b]`."""
    return torch.stack([torch.randn(shape_CFhw, generator=generator) for generator in generators]).to(device)
