"""Bytes of the tensors that a step and a decoding need beside weights, found on tensors without data.

Letters: B batch, C channels, F latent frames, h, w latent height and width.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from vdit_cli.backbones.dry_run import kept_bytes, working_bytes
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.backbones.open_sora_plan.vae_config import VaeConfig

Shape = tuple[int, int, int, int, int]


def denoising_bytes(config: dict[str, Any], dtype: torch.dtype, shape_BCFhw: Shape) -> int:
    """Tensors of one network call with a text of one token.

    Masks add nothing: what the passes of any of them hold at a time is less than the feed-forward layers hold later.
    """
    with torch.device("meta"):
        transformer = OpenSoraT2V(config).to(dtype)
        x, t = torch.empty(shape_BCFhw, dtype=dtype), torch.empty(shape_BCFhw[0])
        text = torch.empty(shape_BCFhw[0], 1, config["caption_channels"], dtype=dtype)
        return working_bytes(lambda: transformer(x, t, text))


def block_sizes(config: dict[str, Any], products: torch.dtype, shape_BCFhw: Shape) -> tuple[int, int, int, int]:
    """Of one block: numbers of LoRA pairs of rank 1, of its matrices and of its tokens, and bytes kept for backward.

    All of it is counted in the type of the matrix products.
    """
    with torch.device("meta"):
        transformer = OpenSoraT2V({**config, "num_layers": 1}).to(products)
        (block,) = transformer.blocks
        grid, batch, width = transformer.token_grid(shape_BCFhw), shape_BCFhw[0], transformer.channels
        x = torch.empty(batch, math.prod(grid), width, dtype=products)
        modulation, text = torch.empty(batch, 6, width, dtype=products), torch.empty(batch, 1, width, dtype=products)
        cos, sin = transformer.rotary(grid, x.device)
        kept = kept_bytes(lambda: block(x, modulation, text, None, cos, sin), transformer.parameters())
    linear = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
    pairs = sum(each.in_features + each.out_features for each in linear)
    return pairs, sum(each.weight.numel() for each in linear), x.numel(), kept


def decoding_bytes(config: dict[str, Any], dtype: torch.dtype, shape_BCFhw: Shape, tiling: bool) -> int:
    """Tensors of decoding. Tiled, two tiles a direction are run: more tiles add only what they make."""
    with torch.device("meta"):
        vae = CausalVAEModel(config).to(dtype)
        if not tiling:
            latents = torch.empty(shape_BCFhw, dtype=dtype)
            return working_bytes(lambda: vae.decode(latents).sample)
        vae.enable_tiling()
        batch, channels, frames, height, width = shape_BCFhw
        side = 2 * vae.tile_latent_min_size
        part = (min(frames, 2 * vae.tile_latent_min_size_t), min(height, side), min(width, side))
        latents = torch.empty(batch, channels, *part, dtype=dtype)
        time_ratio, space_ratio = VaeConfig.read(config).ratios
        pixels = 3 * time_ratio * space_ratio**2 * dtype.itemsize
        rest = batch * (frames * height * width - math.prod(part))
        return working_bytes(lambda: vae.decode(latents).sample) + pixels * rest
