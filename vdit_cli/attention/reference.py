"""The truth that every kernel is judged by: masked softmax attention in float64, N x N in memory.

Letters: B batch, N tokens, H heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask


def reference_attention(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, mask: TileMask, grid: VideoGrid) -> Tensor:
    """Attention over the pairs that `mask` keeps on `grid`, computed and returned in float64: (B, N, H, D)."""
    q, k, v = (x.double().transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD))
    kept = torch.from_numpy(mask.token_mask(grid)).to(q.device)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return (scores.masked_fill(~kept, float("-inf")).softmax(-1) @ v).transpose(1, 2)
