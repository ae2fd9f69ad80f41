"""Convolutions, residual blocks and attention of the causal video VAE, named as its config files name them.

Letters: B batch, C channels, T frames at the layer's rate, h, w height and width at the layer's resolution.
Source: the layers of Open-Sora-Plan v1.2.0, whose published weights fix names, keys and numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdit_cli.errors import EvditError


def as_frames(x_BCThw: Tensor) -> Tensor:
    """Frames as a batch of images, (B*T, C, h, w); without a copy where channels are stored last."""
    return x_BCThw.transpose(1, 2).flatten(0, 1)


def as_video(x_NChw: Tensor, batch: int) -> Tensor:
    """The inverse of `as_frames`: (B*T, C, h, w) to (B, C, T, h, w), a view."""
    return x_NChw.unflatten(0, (batch, -1)).transpose(1, 2)


def repeat_first(x_BCThw: Tensor, count: int) -> Tensor:
    """The video with its first frame `count` more times in front, so that a layer sees no later frame."""
    if not count:
        return x_BCThw
    # Not `expand`: a tensor without strides in time would make `cat` forget that channels are stored last.
    return torch.cat([x_BCThw[:, :, :1]] * count + [x_BCThw], dim=2)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the normed tensor; without gradients it overwrites the norm's result, to save memory."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """GroupNorm as upstream uses it everywhere, with eps 1e-6.

    Raises EvditError when the groups don't divide the channels.
    """
    if channels % groups:
        raise EvditError(
            f"norm_num_groups {groups} does not fit a VAE layer of {channels} channels: it must divide them",
            where="vae/config.json norm_num_groups",
        )
    return nn.GroupNorm(groups, channels, eps=1e-6)


class Conv2d(nn.Conv2d):
    """A 2D convolution applied to each frame."""

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, h', w')."""
        return as_video(super().forward(as_frames(x_BCThw)), x_BCThw.shape[0])


class CausalConv3d(nn.Module):
    """A 3D convolution that sees no later frame: time is padded on the left only, with the first frame."""

    def __init__(
        self, chan_in: int, chan_out: int, kernel_size: int | tuple[int, int, int], stride=1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(chan_in, chan_out, kernel_size, stride, padding=(0, padding, padding))

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T', h', w') with T' = (T - 1) // time stride + 1."""
        return self.conv(repeat_first(x_BCThw, self.conv.kernel_size[0] - 1))


def pointwise(conv: CausalConv3d, x_BCThw: Tensor) -> Tensor:
    """A 1x1x1 convolution as the matrix product that it is: torch's own path is slow on small videos on a CPU."""
    return F.linear(x_BCThw.movedim(1, -1), conv.conv.weight.flatten(1), conv.conv.bias).movedim(-1, 1)


class ResnetBlock2D(nn.Module):
    """Two 3x3 convolutions with norm and SiLU before each, added to the input; every frame by itself, norms too."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, h, w)."""
        x = as_frames(x_BCThw)
        hidden = self.conv1(norm_silu(self.norm1, x))
        hidden = self.conv2(self.dropout(norm_silu(self.norm2, hidden)))
        x = x if self.nin_shortcut is None else self.nin_shortcut(x)
        return as_video(hidden.add_(x), x_BCThw.shape[0])


class ResnetBlock3D(nn.Module):
    """Two causal 3x3x3 convolutions with norm and SiLU before each, added to the input.

    The convolutions see no later frame, but the norms take their statistics over all frames.
    """

    def __init__(self, in_channels: int, out_channels: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, C', T, h, w)."""
        hidden = self.conv1(norm_silu(self.norm1, x_BCThw))
        hidden = self.conv2(self.dropout(norm_silu(self.norm2, hidden)))
        x_BCThw = x_BCThw if self.nin_shortcut is None else pointwise(self.nin_shortcut, x_BCThw)
        return hidden.add_(x_BCThw)


def _attend(q_NChw: Tensor, k_NChw: Tensor, v_NChw: Tensor) -> Tensor:
    """Single-head attention over the pixels of each of N images."""
    q, k, v = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (q_NChw, k_NChw, v_NChw))
    return F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(q_NChw.shape)


class AttnBlock(nn.Module):
    """Single-head attention over the pixels of each frame, made of 2D layers; the norm is per frame too."""

    def __init__(self, in_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(in_channels, groups)
        self.q = nn.Conv2d(in_channels, in_channels, 1)
        self.k = nn.Conv2d(in_channels, in_channels, 1)
        self.v = nn.Conv2d(in_channels, in_channels, 1)
        self.proj_out = nn.Conv2d(in_channels, in_channels, 1)

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to the same shape."""
        x = as_frames(x_BCThw)
        normed = self.norm(x)
        return as_video(x + self.proj_out(_attend(self.q(normed), self.k(normed), self.v(normed))), x_BCThw.shape[0])


class AttnBlock3DFix(nn.Module):
    """Single-head attention over the pixels of each frame, made of 3D layers; the norm is over all frames."""

    def __init__(self, in_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(in_channels, groups)
        self.q = CausalConv3d(in_channels, in_channels, 1)
        self.k = CausalConv3d(in_channels, in_channels, 1)
        self.v = CausalConv3d(in_channels, in_channels, 1)
        self.proj_out = CausalConv3d(in_channels, in_channels, 1)

    def images(self, x_BCThw: Tensor) -> Tensor:
        """The video as the images that attention takes one by one, (B*T, C, h, w)."""
        return as_frames(x_BCThw)

    def video(self, x_NChw: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `images` for a video of that shape."""
        return as_video(x_NChw, shape[0])

    def forward(self, x_BCThw: Tensor) -> Tensor:
        """(B, C, T, h, w) to the same shape."""
        normed = self.norm(x_BCThw)
        q, k, v = (self.images(pointwise(layer, normed)) for layer in (self.q, self.k, self.v))
        return x_BCThw + pointwise(self.proj_out, self.video(_attend(q, k, v), x_BCThw.shape))


class AttnBlock3D(AttnBlock3DFix):
    """The attention of releases before 1.2, which reads (B, C, T, h, w) as if it were (B, T, C, h, w).

    That is a mistake, but the one those weights were trained with: an "image" mixes channels and frames.
    """

    def images(self, x_BCThw: Tensor) -> Tensor:
        """The video reshaped, not transposed, to (B*T, C, h, w)."""
        batch, channels, frames, height, width = x_BCThw.shape
        return x_BCThw.reshape(batch * frames, channels, height, width)

    def video(self, x_NChw: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `images` for a video of that shape."""
        return x_NChw.reshape(shape)
