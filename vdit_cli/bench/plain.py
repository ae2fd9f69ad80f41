"""The plain step: the same weights as published code runs them. What the fast step is measured against.

Separate q, k, v, rotary positions in float32 with repeated tables, torch's default attention, eager, and the padded
text projected and read in every step. Letters: B batch, N video tokens, L text tokens, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vdit_cli.backbones.open_sora_plan.rope import AXES
from vdit_cli.backbones.open_sora_plan.transformer import MASKED, OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.transformer_layers import Attention, Block


def plain_attention(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
    """Attention by whatever kernel torch takes by itself, (B, N, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class PlainStep:
    """One step of `model`'s own weights, without anything that makes ours fast; `attend` is its self-attention."""

    def __init__(self, model: OpenSoraT2V) -> None:
        self.model = model
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = plain_attention

    @torch.no_grad()
    def __call__(self, x_BCFhw: Tensor, t_B: Tensor, states_BLC: Tensor, mask_BL: Tensor) -> Tensor:
        """The model's prediction, in the shape of x."""
        model = self.model
        grid = model.token_grid(x_BCFhw.shape)
        cos, sin = (repeated(table) for table in model.rotary(grid, x_BCFhw.device))
        bias = ((1 - mask_BL.to(states_BLC.dtype)) * MASKED)[:, None, None, :]
        modulation, embedded = model.adaln_single(t_B)
        modulation_B6C = modulation.unflatten(-1, (6, -1))
        text = model.caption_projection(states_BLC)
        x = model.pos_embed(x_BCFhw)
        for block in model.blocks:
            x = self._block(block, x, modulation_B6C, text, bias, cos, sin)
        shift, scale = (model.scale_shift_table + embedded[:, None]).chunk(2, dim=1)
        return model._unpatch(model.proj_out(self._norm(x, shift, scale)), grid)

    def _block(
        self, block: Block, x: Tensor, modulation_B6C: Tensor, text: Tensor, bias: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = (block.scale_shift_table + modulation_B6C).chunk(6, dim=1)
        q, k, v = separate(block.attn1, *[self._norm(x, shift1, scale1)] * 2)
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        x = x + gate1 * block.attn1.to_out[0](self.attend(q, k, v).flatten(-2))
        q, k, v = (part.transpose(1, 2) for part in separate(block.attn2, x, text))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        x = x + block.attn2.to_out[0](read.transpose(1, 2).flatten(-2))
        return x + gate2 * block.ff(self._norm(x, shift2, scale2))

    def _norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.model.config["norm_eps"]) * (1 + scale) + shift


def separate(attention: Attention, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of one, keys and values of the other, by three products, (B, N, H, D) each."""
    heads = (attention.heads, -1)
    return (
        attention.to_q(queries).unflatten(-1, heads),
        attention.to_k(keys).unflatten(-1, heads),
        attention.to_v(keys).unflatten(-1, heads),
    )


def repeated(table: Tensor) -> Tensor:
    """A table (N, 1, 3, 1, D / 6) as (N, 1, 3, D / 3): its frequencies twice, one after the other."""
    return table.squeeze(-2).repeat(1, 1, 1, 2)


def turned(x_BNHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x turned in float32: x cos + (-second, first) sin in each of three parts."""
    parts = x_BNHD.float().unflatten(-1, (AXES, -1))
    first, second = parts.chunk(2, dim=-1)
    return (parts * cos + torch.cat((-second, first), dim=-1) * sin).flatten(-2).to(x_BNHD.dtype)
