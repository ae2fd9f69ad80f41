"""The causal video VAE of Open-Sora-Plan v1.2: 1 + 4n frames in [-1, 1] to 1 + n latent frames, and back.

Causal: no convolution sees a later frame. What does reach back is stated where it is: norms of 3D layers take their
statistics over all frames, and doubling the frame rate looks half a frame ahead.
Letters: B batch, C channels, T pixel frames, H, W pixel size, F, h, w latent frames and size.
Source: Open-Sora-Plan v1.2.0; the encode and decode forms are those of diffusers' autoencoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.backbones.open_sora_plan.vae_coders import Decoder, Encoder
from vdit_cli.backbones.open_sora_plan.vae_config import VaeConfig, layer
from vdit_cli.backbones.open_sora_plan.vae_tiling import Tiling, run_tiled
from vdit_cli.errors import EvditError

TILE_PIXELS = 512
TILE_FRAMES = 29


class Posterior:
    """The diagonal Gaussian over latents that an encoder returns."""

    def __init__(self, moments_BCFhw: Tensor) -> None:
        mean, logvar = moments_BCFhw.chunk(2, dim=1)
        self.mean = mean
        self.logvar = logvar.clamp(-30.0, 20.0)

    def mode(self) -> Tensor:
        """The most likely latents, (B, C, F, h, w)."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Latents drawn from the posterior, (B, C, F, h, w); the noise is drawn where the generator lives."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """Kullback-Leibler divergence to the unit Gaussian in nats, summed over a video: (B,), float32."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)


@dataclass(frozen=True)
class Encoded:
    """What `encode` returns."""

    latent_dist: Posterior


@dataclass(frozen=True)
class Decoded:
    """What `decode` returns: the video in [-1, 1], (B, 3, T, H, W)."""

    sample: Tensor


class CausalVAEModel(nn.Module):
    """The video autoencoder, built from the layer names of its config; `encode` and `decode` in place of `forward`.

    `config` is kept whole, unknown keys too. Tiling is steered by five attributes, in pixels, latents and frames:
    `tile_sample_min_size`, `tile_latent_min_size`, `tile_sample_min_size_t`, `tile_latent_min_size_t` and
    `tile_overlap_factor`. Raises EvditError for a layer name or a list that does not fit.
    """

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config = dict(config)
        built = VaeConfig.read(config)
        self.time_ratio, self.space_ratio = built.ratios
        self.encoder = Encoder(built)
        self.decoder = Decoder(built)
        self.use_quant_layer = built.use_quant_layer
        if built.use_quant_layer:
            conv = layer("convolution", built.q_conv, "q_conv")
            self.quant_conv = conv(2 * built.z_channels, 2 * built.embed_dim, kernel_size=1)
            self.post_quant_conv = conv(built.embed_dim, built.z_channels, kernel_size=1)
        self.use_tiling = False
        self.tile_sample_min_size = TILE_PIXELS
        self.tile_latent_min_size = TILE_PIXELS // self.space_ratio
        self.tile_sample_min_size_t = TILE_FRAMES
        self.tile_latent_min_size_t = (TILE_FRAMES - 1) // self.time_ratio + 1
        self.tile_overlap_factor = 0.125

    def encode(self, video_BCTHW: Tensor) -> Encoded:
        """The posterior of a video in [-1, 1], tiled if tiling is on and the video is larger than a tile."""
        if self.use_tiling and _exceeds(video_BCTHW, self.tile_sample_min_size, self.tile_sample_min_size_t):
            return Encoded(Posterior(run_tiled(self.moments, video_BCTHW, self.tilings()[0])))
        return Encoded(Posterior(self.moments(video_BCTHW)))

    def decode(self, z_BCFhw: Tensor) -> Decoded:
        """The video of latents as `encode` gives them, tiled if tiling is on and they are more than a tile."""
        if self.use_tiling and _exceeds(z_BCFhw, self.tile_latent_min_size, self.tile_latent_min_size_t):
            return Decoded(run_tiled(self.pixels, z_BCFhw, self.tilings()[1]))
        return Decoded(self.pixels(z_BCFhw))

    def moments(self, video_BCTHW: Tensor) -> Tensor:
        """Mean and log-variance of the latents, (B, 2C, F, h, w), never tiled."""
        moments = self.encoder(_channels_last(video_BCTHW))
        return self.quant_conv(moments) if self.use_quant_layer else moments

    def pixels(self, z_BCFhw: Tensor) -> Tensor:
        """The decoded video, (B, 3, T, H, W), never tiled."""
        z_BCFhw = _channels_last(z_BCFhw)
        return self.decoder(self.post_quant_conv(z_BCFhw) if self.use_quant_layer else z_BCFhw)

    def enable_tiling(self) -> None:
        """Encode and decode in tiles from now on, as the five tile attributes say."""
        self.use_tiling = True

    def tilings(self) -> tuple[Tiling, Tiling]:
        """How the five tile attributes cut a video to encode and latents to decode.

        Raises EvditError when the tiles of pixels and of latents are not of the same extent.
        """
        pixels, frames = self.tile_sample_min_size, self.tile_sample_min_size_t
        latents, latent_frames = self.tile_latent_min_size, self.tile_latent_min_size_t
        if pixels != latents * self.space_ratio or frames - 1 != (latent_frames - 1) * self.time_ratio:
            raise EvditError(
                f"VAE tiles of {frames} x {pixels} x {pixels} pixels and {latent_frames} x {latents} x {latents} "
                f"latents do not fit: a latent is {self.time_ratio} frames of {self.space_ratio} x {self.space_ratio}, "
                f"the first one of a tile a single frame",
                next_steps=[f"tile_sample_min_size {latents * self.space_ratio}"],
            )
        encoding = Tiling.of(pixels, frames, latents, self.tile_overlap_factor)
        return encoding, Tiling.of(latents, latent_frames, pixels, self.tile_overlap_factor)

    def disable_tiling(self) -> None:
        """Encode and decode in one piece from now on."""
        self.use_tiling = False

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Self:
        """The model in `folder` (config.json and safetensors, sharded or not), ready to encode and decode.

        Raises EvditError for missing, damaged or unfitting files.
        """
        with torch.device("meta"):
            model = cls(loading.read_config(folder))
        loading.load_strict(model, folder, dtype=dtype, device=device)
        return model.eval()

    def save_pretrained(
        self, folder: Path | str, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write config.json and weights, the latter as `dtype` if given, so that `from_pretrained` reads them."""
        loading.save_weights(self, folder, self.config, dtype=dtype, metadata=metadata)

    @torch.no_grad()
    def fold_latent_scale(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Fold (z - mean) / std per latent channel into the weights: `encode` gives it, `decode` takes it back.

        Raises EvditError for a VAE without quantisation layers, which are what it is folded into.
        """
        if not self.use_quant_layer:
            raise EvditError(
                "latents of a VAE with use_quant_layer false can't be rescaled: it has no layer to hold the scale"
            )
        weight, bias = self.quant_conv.parameters()
        mean, std = mean_C.to(bias), std_C.to(bias)
        # The first half of the moments is the mean, the second the log-variance, which no shift of the mean changes.
        weight[: len(std)] /= std.view(-1, *[1] * (weight.ndim - 1))
        bias[: len(std)] -= mean
        bias[: len(std)] /= std
        bias[len(std) :] -= 2 * std.log()
        weight, bias = self.post_quant_conv.parameters()
        bias += weight.flatten(1) @ mean
        weight *= std.view(1, -1, *[1] * (weight.ndim - 2))


def _exceeds(x_BCTHW: Tensor, size: int, frames: int) -> bool:
    """Whether a tensor is larger than one tile along any axis."""
    return x_BCTHW.shape[2] > frames or max(x_BCTHW.shape[3:]) > size


def _channels_last(x_BCTHW: Tensor) -> Tensor:
    """The same tensor with channels stored last: every layer keeps that, and convolutions are then 3 times as fast."""
    return x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
