"""Tile attention by torch's own dense kernels, on any device: dense passes joined by their log-sum-exp.

Letters: B batch, N tokens in the order of the passes, H heads, D head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vdit_cli.attention.by_passes import attend_by_passes
from vdit_cli.tiles.passes import Pass

if TYPE_CHECKING:
    from vdit_cli.attention.bind import Case

NAME = "sdpa"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
WIDTH_STEP = 8
"""CUDA operators take head widths that are multiples of this."""


def supports(case: Case) -> str | None:
    """None, or why this kernel can't take `case`."""
    return None if case.dtype in DTYPES else f"{case.dtype} is none of float64, float32, float16, bfloat16"


def run(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, passes: tuple[Pass, ...]) -> Tensor:
    """Attention (B, N, H, D) over the pairs of `passes`; a single pass is plain SDPA, bit for bit."""
    if len(passes) == 1:
        q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    width = q_BNHD.shape[-1]
    q, k, v = (_fitting(x) for x in (q_BNHD, k_BNHD, v_BNHD))
    return attend_by_passes(q, k, v, passes, width**-0.5)[..., :width]


def _fitting(x_BNHD: Tensor) -> Tensor:
    """x with a contiguous head, on CUDA filled up with zeros to a width that its operators take: the same scores."""
    if x_BNHD.is_cuda and x_BNHD.shape[-1] % WIDTH_STEP:
        return F.pad(x_BNHD, (0, -x_BNHD.shape[-1] % WIDTH_STEP))
    return x_BNHD if x_BNHD.stride(-1) == 1 else x_BNHD.contiguous()
