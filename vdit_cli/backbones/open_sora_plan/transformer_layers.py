"""The parts of the transformer: self- and cross-attention, feed-forward, block, and its embeddings of time and text.

Letters: B batch, N video tokens, L text tokens, H heads, D head width, C = H * D channels.
Source: Open-Sora-Plan v1.2.0, after PixArt-alpha (arXiv 2310.00426); attribute names are those of its state dict.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdit_cli.backbones.open_sora_plan.rope import rotate
from vdit_cli.errors import EvditError

if TYPE_CHECKING:
    from vdit_cli.attention.bind import Attend

TIME_CHANNELS = 256


KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a text in one block, each (B, L, H, D)."""


class Attention(nn.Module):
    """Projections to queries, keys, values and back, shared by both kinds of attention."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def queries(self, x_BNC: Tensor) -> Tensor:
        """Queries (B, N, H, D)."""
        return self.to_q(x_BNC).unflatten(-1, (self.heads, -1))

    def keys_values(self, x_BNC: Tensor) -> KeysValues:
        """Keys and values, each (B, N, H, D)."""
        heads = (self.heads, -1)
        return self.to_k(x_BNC).unflatten(-1, heads), self.to_v(x_BNC).unflatten(-1, heads)


class SelfAttention(Attention):
    """An attention site: `attend` is a bound mask, or None for dense attention.

    `attend` is called with q, k, v of (B, N, H, D), positions already in them, and returns (B, N, H, D). After `fuse`
    the three projections are one product wherever no gradient is recorded.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.attend: Attend | None = None
        self._joint: tuple[Tensor, Tensor] | None = None

    def forward(self, x_BNC: Tensor, cos: Tensor, sin: Tensor, padding_bias: Tensor | None = None) -> Tensor:
        """Attention among video tokens; `padding_bias` (B, 1, 1, N) is added to the scores of padded keys.

        Raises EvditError when both a bound mask and padding are asked for.
        """
        q, k, v = self.project(x_BNC)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.attend is None:
            return self.to_out[0](dense(q, k, v, padding_bias).flatten(-2))
        if padding_bias is not None:
            raise EvditError(
                "a tile mask and a padded video attention_mask can't be combined: tile attention has no padded keys",
                next_steps=["leave attention_mask out", "run without --masks"],
            )
        return self.to_out[0](self.attend(q, k, v).flatten(-2))

    def project(self, x_BNC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, N, H, D)."""
        if self._joint is None or torch.is_grad_enabled():
            return self.queries(x_BNC), *self.keys_values(x_BNC)
        q, k, v = F.linear(x_BNC, *self._joint).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return q, k, v

    @property
    def is_fused(self) -> bool:
        """Whether queries, keys and values come from one product where no gradient is recorded."""
        return self._joint is not None

    def fuse(self) -> None:
        """Join the weights of the projections; theirs become views of the joint ones.

        So the state dict keeps its keys, and changes in place are seen by both. Raises ValueError for projections that
        are no plain linear layers: merge an adapter first.
        """
        parts = (self.to_q, self.to_k, self.to_v)
        if any(type(part) is not nn.Linear for part in parts):
            raise ValueError(f"{[type(part).__name__ for part in parts]} can't be fused: merge adapters first")
        with torch.inference_mode(False), torch.no_grad():
            weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
            for part, own_weight, own_bias in zip(parts, weight.chunk(3), bias.chunk(3), strict=True):
                part.weight.data, part.bias.data = own_weight, own_bias
        self._joint = weight, bias

    def unfuse(self) -> None:
        """Give each projection weights of its own again."""
        if self._joint is None:
            return
        self._joint = None
        for part in (self.to_q, self.to_k, self.to_v):
            part.weight.data, part.bias.data = part.weight.data.clone(), part.bias.data.clone()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Moved or cast one by one, the weights would no longer be views of the joint ones.
        was_fused = self.is_fused
        self.unfuse()
        super()._apply(fn, recurse)
        if was_fused:
            self.fuse()
        return self

    def _load_from_state_dict(self, *given: Any) -> None:
        # Weights may be put in the place of the views.
        self.unfuse()
        super()._load_from_state_dict(*given)

    def __getstate__(self) -> dict[str, Any]:
        # A copy's weights are no views of the copy's joint ones.
        return self.__dict__ | {"_joint": None}


class CrossAttention(Attention):
    """Attention of video tokens to text tokens."""

    def forward(self, x_BNC: Tensor, text: Tensor | KeysValues, text_bias: Tensor | None) -> Tensor:
        """What each video token reads from the text, (B, L, C) or its keys and values made beforehand.

        `text_bias` (B, 1, 1, L) is added to the scores.
        """
        keys, values = self.keys_values(text) if isinstance(text, Tensor) else text
        return self.to_out[0](dense(self.queries(x_BNC), keys, values, text_bias).flatten(-2))


def dense(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, bias: Tensor | None) -> Tensor:
    """Fused softmax attention with an additive bias on keys, (B, N, H, D) in and out."""
    bias = None if bias is None else bias.to(q_BNHD.dtype)
    out = F.scaled_dot_product_attention(
        q_BNHD.transpose(1, 2), k_BNHD.transpose(1, 2), v_BNHD.transpose(1, 2), attn_mask=bias
    )
    return out.transpose(1, 2)


class GeluProjection(nn.Module):
    """A linear layer and the tanh form of GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """GELU of the projected last dimension."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """C -> 4C -> C. The identity stands where upstream has a dropout, so that keys keep their numbers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            GeluProjection(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x_BNC: Tensor) -> Tensor:
        """The same shape as `x_BNC`."""
        return self.net(x_BNC)


class Block(nn.Module):
    """Self-attention, cross-attention without a norm, feed-forward; the first and the last are modulated by time."""

    def __init__(self, channels: int, heads: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.attn1 = SelfAttention(channels, heads)
        self.attn2 = CrossAttention(channels, heads)
        self.ff = FeedForward(channels)
        self.scale_shift_table = nn.Parameter(torch.randn(6, channels) / math.sqrt(channels))

    def forward(
        self,
        x_BNC: Tensor,
        modulation_B6C: Tensor,
        text: Tensor | KeysValues,
        text_bias: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        padding_bias: Tensor | None = None,
        *,
        told: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One layer; its table is added to `modulation_B6C`: shift, scale, gate of attention and of feed-forward.

        `told` gives the self-attention's output too, before the gate: (attended, x).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + modulation_B6C).chunk(6, dim=1)
        attended = self.attn1(modulated_norm(x_BNC, shift1, scale1, self.eps), cos, sin, padding_bias)
        x = torch.addcmul(x_BNC, gate1, attended)
        x = x + self.attn2(x, text, text_bias)
        x = torch.addcmul(x, gate2, self.ff(modulated_norm(x, shift2, scale2, self.eps)))
        return (attended, x) if told else x


def modulated_norm(x_BNC: Tensor, shift_B1C: Tensor, scale_B1C: Tensor, eps: float) -> Tensor:
    """Layer norm without parameters, then `* (1 + scale) + shift`; one operation where all rows share them."""
    if len(scale_B1C) == 1 and scale_B1C.dtype == x_BNC.dtype:
        return F.layer_norm(x_BNC, x_BNC.shape[-1:], (1 + scale_B1C).flatten(), shift_B1C.flatten(), eps)
    return torch.addcmul(shift_B1C, F.layer_norm(x_BNC, x_BNC.shape[-1:], eps=eps), 1 + scale_B1C)


def sinusoid(t_B: Tensor) -> Tensor:
    """Timesteps, whole or fractional, as (B, 256) in float32: cosines, then sines, of 128 frequencies.

    Source: section 3.5 of arXiv 1706.03762, cosines first as in DiT (arXiv 2212.09748).
    """
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t_B.device, dtype=torch.float32) / half)
    angles = t_B.float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TwoLinear(nn.Module):
    """Linear, activation, linear: the embedders of time (SiLU) and of text (tanh GELU)."""

    def __init__(self, inputs: int, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, channels)
        self.act = activation
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The last dimension becomes `channels`."""
        return self.linear_2(self.act(self.linear_1(x)))


class TimeEmbedding(nn.Module):
    """Holds the embedder under the name that its keys have."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.timestep_embedder = TwoLinear(TIME_CHANNELS, channels, nn.SiLU())

    def forward(self, t_B: Tensor) -> Tensor:
        """Timesteps as (B, C) in the type of the weights."""
        return self.timestep_embedder(sinusoid(t_B).to(self.timestep_embedder.linear_1.weight.dtype))


class TimeModulation(nn.Module):
    """Timesteps to the modulation that all blocks share (adaLN-single, section 2.3 of arXiv 2310.00426)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.emb = TimeEmbedding(channels)
        self.linear = nn.Linear(channels, 6 * channels)

    def forward(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 6C) for the blocks, and the embedded time (B, C) for the output."""
        embedded_BC = self.emb(t_B)
        return self.linear(F.silu(embedded_BC)), embedded_BC


class PatchEmbedding(nn.Module):
    """Square patches of each latent frame as tokens; positions enter by rotation, so none are added."""

    def __init__(self, inputs: int, channels: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, channels, kernel_size=patch, stride=patch)

    def forward(self, x_BCFhw: Tensor) -> Tensor:
        """Tokens (B, N, C) in (t, y, x) order."""
        batch = x_BCFhw.shape[0]
        tokens = self.proj(x_BCFhw.transpose(1, 2).flatten(0, 1)).flatten(2).transpose(1, 2)
        return tokens.unflatten(0, (batch, -1)).flatten(1, 2)
