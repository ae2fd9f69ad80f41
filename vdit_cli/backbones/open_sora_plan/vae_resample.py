"""Layers of the causal video VAE that change the resolution or the frame rate, named as its config files name them.

Each class says by how much: `time_factor` and `space_factor`.
Letters: B batch, C channels, T frames at the layer's rate, h, w height and width at the layer's resolution.
Source: the layers of Open-Sora-Plan v1.2.0, whose published weights fix names, keys and numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdit_cli.backbones.open_sora_plan.vae_layers import CausalConv3d, as_frames, as_video, repeat_first

# A stride-2 window of 3 that starts at the first pixel needs one zero at the right and one at the bottom.
_RIGHT_AND_BOTTOM = (0, 1, 0, 1)
_MIX_FACTOR = 2.0


def double_linearly(x_BCThw: Tensor, dim: int) -> Tensor:
    """The video with twice the samples along `dim` (2, 3 or 4), by linear interpolation between their centres.

    The same numbers as `F.interpolate(..., align_corners=False)` along one axis, but as shifts and sums: its gradient
    has no atomic additions, and a compiler fuses it with what stands around it. Channels come out stored last.
    """
    x_BThwC, axis = x_BCThw.permute(0, 2, 3, 4, 1), dim - 1
    last = x_BThwC.shape[axis] - 1
    before = torch.cat([x_BThwC.narrow(axis, 0, 1), x_BThwC.narrow(axis, 0, last)], axis)
    after = torch.cat([x_BThwC.narrow(axis, 1, last), x_BThwC.narrow(axis, last, 1)], axis)
    pairs = torch.stack([torch.lerp(x_BThwC, before, 0.25), torch.lerp(x_BThwC, after, 0.25)], axis + 1)
    return pairs.flatten(axis, axis + 1).permute(0, 4, 1, 2, 3)


def double_later_frames(x_BCThw: Tensor) -> Tensor:
    """Each frame but the first twice, by linear interpolation in time: T frames become 2 T - 1."""
    if x_BCThw.shape[2] == 1:
        return x_BCThw
    return torch.cat([x_BCThw[:, :, :1], double_linearly(x_BCThw[:, :, 1:], 2)], dim=2)


def double_and_convolve(x_BCThw: Tensor, weight_OI33: Tensor, bias: Tensor | None) -> Tensor:
    """Nearest-neighbour doubling of each frame and a 3x3 convolution of it, zeros around, as a transposed convolution.

    Where two of the three taps of a row fall on copies of the same pixel they add up: 4 products in place of 9, and no
    doubled frame in memory. Sums of taps are taken in float32 at least.
    """
    taps = weight_OI33.to(torch.promote_types(weight_OI33.dtype, torch.float32)).flip(2, 3).transpose(0, 1)
    kernel = F.pad(taps, (0, 1, 0, 0)) + F.pad(taps, (1, 0, 0, 0))
    kernel = F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))
    frames = F.conv_transpose2d(as_frames(x_BCThw), kernel.to(weight_OI33.dtype), bias, stride=2, padding=1)
    return as_video(frames, x_BCThw.shape[0])


class Downsample(nn.Module):
    """Half the resolution by a strided 2D convolution on each frame."""

    time_factor, space_factor = 1, 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, h/2, w/2)."""
        return as_video(self.conv(F.pad(as_frames(x_BCThw), _RIGHT_AND_BOTTOM)), x_BCThw.shape[0])


class Upsample(nn.Module):
    """Twice the resolution by nearest neighbour, then a 2D convolution on each frame."""

    time_factor, space_factor = 1, 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, 2h, 2w)."""
        return double_and_convolve(x_BCThw, self.conv.weight, self.conv.bias)


class SpatialDownsample2x(nn.Module):
    """Half the resolution by a strided 1x3x3 convolution."""

    time_factor, space_factor = 1, 2

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(chan_in, chan_out, (1, 3, 3), stride=(1, 2, 2))

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, h/2, w/2)."""
        return self.conv(F.pad(x_BCThw, _RIGHT_AND_BOTTOM))


class SpatialUpsample2x(nn.Module):
    """Twice the resolution by nearest neighbour, then a 1x3x3 convolution."""

    time_factor, space_factor = 1, 2

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(chan_in, chan_out, (1, 3, 3), padding=1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, 2h, 2w)."""
        return double_and_convolve(x_BCThw, self.conv.conv.weight.squeeze(2), self.conv.conv.bias)


class TimeDownsample2x(nn.Module):
    """Half the frame rate by the mean of three frames."""

    time_factor, space_factor = 2, 1

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C, (T + 1) // 2, h, w)."""
        return F.avg_pool3d(repeat_first(x_BCThw, 2), (3, 1, 1), stride=(2, 1, 1))


class TimeUpsample2x(nn.Module):
    """Twice the frame rate by linear interpolation; the first frame stays single."""

    time_factor, space_factor = 2, 1

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C, 2 T - 1, h, w)."""
        return double_later_frames(x_BCThw)


class TimeDownsampleRes2x(nn.Module):
    """Half the frame rate by a learned mix of a mean of three frames and a strided convolution."""

    time_factor, space_factor = 2, 1

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride=(2, 1, 1), padding=(0, 1, 1))
        self.mix_factor = nn.Parameter(torch.tensor([_MIX_FACTOR]))

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', (T + 1) // 2, h, w)."""
        padded = repeat_first(x_BCThw, 2)
        share = torch.sigmoid(self.mix_factor)
        return share * F.avg_pool3d(padded, (3, 1, 1), stride=(2, 1, 1)) + (1 - share) * self.conv(padded)


class TimeUpsampleRes2x(nn.Module):
    """Twice the frame rate by linear interpolation, mixed with a causal convolution of it."""

    time_factor, space_factor = 2, 1

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, 3, padding=1)
        self.mix_factor = nn.Parameter(torch.tensor([_MIX_FACTOR]))

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', 2 T - 1, h, w)."""
        doubled = double_later_frames(x_BCThw)
        share = torch.sigmoid(self.mix_factor)
        return share * doubled + (1 - share) * self.conv(doubled)


class Spatial2xTime2x3DDownsample(nn.Module):
    """Half the resolution and half the frame rate by one strided causal convolution."""

    time_factor, space_factor = 2, 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, 3, stride=2)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', (T + 1) // 2, h/2, w/2)."""
        return self.conv(F.pad(x_BCThw, _RIGHT_AND_BOTTOM))


class Spatial2xTime2x3DUpsample(nn.Module):
    """Twice the resolution and, but for the first frame, the frame rate, linearly; then a causal convolution."""

    time_factor, space_factor = 2, 2

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, 3, padding=1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', 2 T - 1, 2h, 2w)."""
        return self.conv(double_linearly(double_linearly(double_later_frames(x_BCThw), 3), 4))
