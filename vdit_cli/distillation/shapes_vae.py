"""Training the video VAE of the embedded model on rendered clips of the procedural world.

Letters: B batch, C channels, T pixel frames, H, W pixels (only here: no attention heads in this file).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.data.shapes_world import draw_scenes, render
from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.trainer import LossTerms, Trained, put_parameters, train
from vdit_cli.recipe_training import ShapesVaeOptions
from vdit_cli.timing import Progress

UNSEEN_SEED = 987_654_321
"""Scenes of this seed are never trained on: PSNR and the latents' mean and deviation are measured on them."""


def vae_config(options: ShapesVaeOptions) -> dict[str, Any]:
    """The CausalVAEModel configuration: Open-Sora-Plan's layer types, one block a level, 4 x 8 x 8."""
    return {
        "_class_name": "CausalVAEModel",
        "hidden_size": options.hidden_size,
        "hidden_size_mult": list(options.hidden_size_mult),
        "norm_num_groups": options.norm_groups,
        "num_res_blocks": 1,
        "z_channels": 4,
        "embed_dim": 4,
        "double_z": True,
        "dropout": 0.0,
        "resolution": 128,
        "attn_resolutions": [],
        "use_quant_layer": True,
        "q_conv": "CausalConv3d",
        "encoder_conv_in": "Conv2d",
        "encoder_conv_out": "CausalConv3d",
        "encoder_attention": "AttnBlock3DFix",
        "encoder_mid_resnet": "ResnetBlock3D",
        "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"],
        "encoder_spatial_downsample": ["Downsample", "Spatial2xTime2x3DDownsample", "Spatial2xTime2x3DDownsample", ""],
        "encoder_temporal_downsample": ["", "", "", ""],
        "decoder_conv_in": "CausalConv3d",
        "decoder_conv_out": "CausalConv3d",
        "decoder_attention": "AttnBlock3DFix",
        "decoder_mid_resnet": "ResnetBlock3D",
        "decoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D", "ResnetBlock3D"],
        "decoder_spatial_upsample": ["", "SpatialUpsample2x", "Spatial2xTime2x3DUpsample", "Spatial2xTime2x3DUpsample"],
        "decoder_temporal_upsample": ["", "", "", ""],
        # `normalise_latents` folds the scale into the weights; without the key a loader takes upstream's 0.18215.
        "scaling_factor": 1.0,
    }


class Autoencoder(nn.Module):
    """Encoder, posterior sample and decoder in one forward, so that one compiled graph holds them."""

    def __init__(self, vae: CausalVAEModel) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video_BCTHW: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction from a posterior sample and the mean KL divergence to a standard normal, per latent."""
        posterior = self.vae.encode(video_BCTHW).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latent = mean + torch.exp(0.5 * logvar) * noise
        divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
        return self.vae.decode(latent).sample, divergence


def reconstruction_terms(video_BCTHW: Tensor, rebuilt_BCTHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean absolute error, mean squared error, and mean absolute error of the first differences in x, y and t."""
    error = rebuilt_BCTHW.float() - video_BCTHW
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean() + error.diff(dim=-3).abs().mean()
    return error.abs().mean(), error.square().mean(), edges


def train_vae(
    options: ShapesVaeOptions, seed: int, folder: Path, device: torch.device, compiled: bool, progress: Progress
) -> tuple[CausalVAEModel, Trained]:
    """Train the VAE from scratch; returns it holding the averaged weights, in evaluation mode, float32."""
    torch.manual_seed(seed)
    vae = CausalVAEModel(vae_config(options)).to(device)
    model = Autoencoder(vae)
    if compiled:
        model.compile()
    optimisers = build_optimisers(
        model,
        lambda name, parameter: parameter.ndim >= 4 and parameter.shape[0] > 8,
        matrix_rate=options.learning_rate,
        rate=options.learning_rate,
        betas=(0.9, 0.99),
        matrix_decay=0.0,
    )
    latent_shape = (options.batch_size, 4, 8, 16, 16)

    def loss(iteration: int, on_cpu: torch.Generator, on_device: torch.Generator) -> LossTerms:
        first = iteration * options.batch_size
        scenes = draw_scenes(seed, options.batch_size, "train", options.two_objects, start=first)
        video = render(scenes, device=device) * 2.0 - 1.0
        noise = torch.randn(latent_shape, generator=on_device, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            rebuilt, divergence = model(video, noise)
        absolute, squared, edges = reconstruction_terms(video, rebuilt)
        total = absolute + squared + options.edge_weight * edges + options.kl_weight * divergence
        return {"loss": total, "absolute": absolute, "squared": squared, "edges": edges, "kl": divergence}

    trained = train(model, optimisers, loss, options, "VAE", seed, folder, device, progress)
    put_parameters(model, trained.average)
    return vae.eval().requires_grad_(False), trained


def unseen_clips(count: int, device: torch.device, chunk: int = 16) -> Iterator[tuple[list[str], Tensor]]:
    """Chunks of (motion of the first object, clips in [-1, 1]) that no training ever draws."""
    for first in range(0, count, chunk):
        scenes = draw_scenes(UNSEEN_SEED, min(chunk, count - first), "train", 0.3, start=first)
        yield [scene.objects[0].motion for scene in scenes], render(scenes, device=device) * 2.0 - 1.0


@torch.no_grad()
def normalise_latents(vae: CausalVAEModel, count: int, device: torch.device) -> None:
    """Fold the mean and deviation of each latent channel into the quantisation convolutions (scaling factor 1)."""
    means = torch.cat([vae.encode(clips).latent_dist.mean.double() for _, clips in unseen_clips(count, device)])
    per_channel = means.transpose(0, 1).flatten(1)
    vae.fold_latent_scale(per_channel.mean(1).float(), per_channel.std(1).float())


@torch.no_grad()
def measure_psnr(vae: CausalVAEModel, count: int, device: torch.device) -> dict[str, float]:
    """PSNR in dB (peak 255, mean over clips) of the decoded posterior mean on unseen clips: all, worst, by motion."""
    by_motion: dict[str, list[float]] = {}
    for motions, clips in unseen_clips(count, device):
        rebuilt = vae.decode(vae.encode(clips).latent_dist.mean).sample.clamp(-1, 1)
        errors = (rebuilt - clips).square().flatten(1).mean(1) / 4.0
        for motion, error in zip(motions, errors.tolist(), strict=True):
            by_motion.setdefault(motion, []).append(-10.0 * math.log10(error))
    values = [value for values in by_motion.values() for value in values]
    report = {"all": sum(values) / len(values), "worst": min(values)}
    return report | {motion: sum(values) / len(values) for motion, values in sorted(by_motion.items())}
