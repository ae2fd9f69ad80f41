"""Encoder and decoder of the causal video VAE, built from the layer names of its config.

Attribute names are the keys of the published weights. Letters: B batch, C channels, T pixel frames, H, W pixel size,
F, h, w latent frames and size. Source: Open-Sora-Plan v1.2.0.
"""

from __future__ import annotations

from torch import Tensor, nn

from vdit_cli.backbones.open_sora_plan.vae_config import VaeConfig, layer
from vdit_cli.backbones.open_sora_plan.vae_layers import group_norm, norm_silu

RGB = 3


class _Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where the config wants it."""

    def __init__(self, config: VaeConfig, part: str, level: int, chan_in: int, blocks: int, attends: bool) -> None:
        super().__init__()
        resnet_key, attention_key = f"{part}_resnet_blocks", f"{part}_attention"
        resnet = layer("residual block", getattr(config, resnet_key)[level], resnet_key)
        attention = layer("attention", getattr(config, attention_key), attention_key)
        channels, groups = config.channels[level], config.norm_num_groups
        widths = [chan_in] + [channels] * (blocks - 1)
        self.block = nn.ModuleList(resnet(width, channels, config.dropout, groups) for width in widths)
        self.attn = nn.ModuleList(attention(channels, groups) for _ in range(blocks if attends else 0))

    def residual(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, h, w)."""
        for number, block in enumerate(self.block):
            x_BCThw = block(x_BCThw)
            if len(self.attn):
                x_BCThw = self.attn[number](x_BCThw)
        return x_BCThw


def _sampling(config: VaeConfig, key: str, level: int) -> nn.Module | None:
    """The sampling layer that `config.key` names for the level, or None where it names none."""
    name, channels = getattr(config, key)[level], config.channels[level]
    role = "downsampling" if key.startswith("encoder") else "upsampling"
    return layer(role, name, key)(channels, channels) if name else None


class _DownLevel(_Level):
    """A level of the encoder: half the resolution or frame rate after it, where the config says so."""

    def __init__(self, config: VaeConfig, level: int, chan_in: int, attends: bool) -> None:
        super().__init__(config, "encoder", level, chan_in, config.num_res_blocks, attends)
        self.downsample = _sampling(config, "encoder_spatial_downsample", level)
        self.time_downsample = _sampling(config, "encoder_temporal_downsample", level)

    def forward(self, x_BCThw: Tensor, is_last: bool = False) -> Tensor:
        """(B, C, T, h, w) to (B, C', T', h', w'), what the next level takes."""
        x_BCThw = self.residual(x_BCThw)
        if is_last:
            # Upstream goes on from the last level's blocks: a sampling layer there has weights but no say.
            return x_BCThw
        x_BCThw = x_BCThw if self.downsample is None else self.downsample(x_BCThw)
        return x_BCThw if self.time_downsample is None else self.time_downsample(x_BCThw)


class _UpLevel(_Level):
    """A level of the decoder, with one block more than the encoder's: twice the resolution or frame rate after it."""

    def __init__(self, config: VaeConfig, level: int, chan_in: int, attends: bool) -> None:
        super().__init__(config, "decoder", level, chan_in, config.num_res_blocks + 1, attends)
        self.upsample = _sampling(config, "decoder_spatial_upsample", level)
        self.time_upsample = _sampling(config, "decoder_temporal_upsample", level)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T', h', w'), what the next level takes."""
        x_BCThw = self.residual(x_BCThw)
        x_BCThw = x_BCThw if self.upsample is None else self.upsample(x_BCThw)
        return x_BCThw if self.time_upsample is None else self.time_upsample(x_BCThw)


class _Mid(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, config: VaeConfig, part: str) -> None:
        super().__init__()
        resnet_key, attention_key = f"{part}_mid_resnet", f"{part}_attention"
        resnet = layer("residual block", getattr(config, resnet_key), resnet_key)
        attention = layer("attention", getattr(config, attention_key), attention_key)
        channels, groups = config.channels[-1], config.norm_num_groups
        self.block_1 = resnet(channels, channels, config.dropout, groups)
        self.attn_1 = attention(channels, groups)
        self.block_2 = resnet(channels, channels, config.dropout, groups)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x_BCThw)))


class Encoder(nn.Module):
    """Video to moments: convolution, levels from the highest resolution down, middle, norm, convolution."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        conv_in = layer("convolution", config.encoder_conv_in, "encoder_conv_in")
        conv_out = layer("convolution", config.encoder_conv_out, "encoder_conv_out")
        self.conv_in = conv_in(RGB, config.hidden_size, kernel_size=3, padding=1)
        levels: list[_DownLevel] = []
        chan_in, resolution = config.hidden_size, config.resolution
        for number, channels in enumerate(config.channels):
            level = _DownLevel(config, number, chan_in, attends=resolution in config.attn_resolutions)
            resolution //= 2 if level.downsample is not None else 1
            levels.append(level)
            chan_in = channels
        self.down = nn.ModuleList(levels)
        self.mid = _Mid(config, "encoder")
        self.norm_out = group_norm(chan_in, config.norm_num_groups)
        moments = 2 * config.z_channels if config.double_z else config.z_channels
        self.conv_out = conv_out(chan_in, moments, kernel_size=3, padding=1)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to moments (B, 2 z_channels, F, h, w)."""
        x = self.conv_in(video_BCTHW)
        for level in self.down[:-1]:
            x = level(x)
        x = self.down[-1](x, is_last=True)
        return self.conv_out(norm_silu(self.norm_out, self.mid(x)))


class Decoder(nn.Module):
    """Latents to video: convolution, middle, levels from the lowest resolution up, norm, convolution."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        conv_in = layer("convolution", config.decoder_conv_in, "decoder_conv_in")
        conv_out = layer("convolution", config.decoder_conv_out, "decoder_conv_out")
        chan_in = config.channels[-1]
        self.conv_in = conv_in(config.z_channels, chan_in, kernel_size=3, padding=1)
        self.mid = _Mid(config, "decoder")
        resolution = config.resolution // 2 ** (len(config.channels) - 1)
        levels: list[_UpLevel] = []
        for number in reversed(range(len(config.channels))):
            level = _UpLevel(config, number, chan_in, attends=resolution in config.attn_resolutions)
            resolution *= 2 if level.upsample is not None else 1
            levels.insert(0, level)
            chan_in = config.channels[number]
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(chan_in, config.norm_num_groups)
        self.conv_out = conv_out(chan_in, RGB, kernel_size=3, padding=1)

    def forward(self, z_BCFhw: Tensor) -> Tensor:
        """(B, z_channels, F, h, w) to (B, 3, T, H, W)."""
        x = self.mid(self.conv_in(z_BCFhw))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(norm_silu(self.norm_out, x))
