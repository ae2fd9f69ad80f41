"""Small VAEs for the tests of this folder: the golden ones, the embedded model's, and tiny ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel

GOLDEN = Path(__file__).parents[2] / "golden" / "open_sora_plan"
TILE_ATTRIBUTES = (
    "tile_sample_min_size",
    "tile_latent_min_size",
    "tile_sample_min_size_t",
    "tile_latent_min_size_t",
    "tile_overlap_factor",
)


def golden_config(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / case / "config.json").read_text(encoding="utf-8"))


def shapes_config(**changes: Any) -> dict[str, Any]:
    """The embedded model's config, or one like it."""
    path = Path(__file__).with_name("shapes_vae_config.json")
    return json.loads(path.read_text(encoding="utf-8")) | changes


def tiny(seed: int = 0, **changes: Any) -> CausalVAEModel:
    """A VAE of the embedded model's structure and 4 to 12 channels, in evaluation mode."""
    torch.manual_seed(seed)
    return CausalVAEModel(shapes_config(hidden_size=4, norm_num_groups=2, **changes)).eval()


def random_video(frames: int, height: int, width: int, seed: int = 1, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1
