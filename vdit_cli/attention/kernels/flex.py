"""Tile attention by torch's FlexAttention under a block mask: the peer that the other kernels are compared with.

It computes every 128 x 128 block that holds a kept pair, and its list of blocks grows with their number squared.
Letters: B batch, N tokens in the order of the passes, H heads, D head width, G tokens that everyone sees, S tokens a
frame.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdit_cli.tiles.passes import Pass

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from vdit_cli.attention.bind import Case

NAME = "flex"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = range(16, 257)
"""Head widths that its kernels take."""
CAPABILITY = (8, 0)
BLOCK = 128
MOST_SHAPES = 256
"""Shapes and masks that are compiled in one process before torch gives up."""


def supports(case: Case) -> str | None:
    """None, or why this kernel can't take `case`."""
    if case.device.type != "cuda":
        return f"it is compiled for CUDA devices; uncompiled, on {case.device.type}, it would hold all N x N scores"
    if case.dtype not in DTYPES:
        return f"{case.dtype} is none of float32, float16, bfloat16"
    if case.head_dim not in WIDTHS:
        return f"head width {case.head_dim} is not from {WIDTHS[0]} to {WIDTHS[-1]}"
    found = torch.cuda.get_device_capability(case.device)
    if found < CAPABILITY:
        return f"compute capability {'.'.join(map(str, found))} is below {'.'.join(map(str, CAPABILITY))}"
    return None


def run(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, passes: tuple[Pass, ...]) -> Tensor:
    """Attention (B, N, H, D) over the pairs of `passes`, which are those of a tile mask; one pass is plain SDPA.

    Compiled for each shape and mask on CUDA; on the CPU, where `supports` refuses it, all scores are in memory.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD))
    if len(passes) == 1:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    mask = block_mask(passes, q.device)
    with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
        return _flex_attention(q.is_cuda)(q, k, v, block_mask=mask).transpose(1, 2)


@lru_cache(maxsize=16)
def block_mask(passes: tuple[Pass, ...], device: torch.device) -> BlockMask:
    """The block mask of three passes, made from their numbers: no token mask is ever there."""
    from torch.nn.attention.flex_attention import BlockMask

    everyone, tokens = passes[0].queries.stop, passes[1].queries.stop
    frame = len(passes[2].queries) // passes[2].parts

    def keeps(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (query - everyone) // frame == (key - everyone) // frame
        return (query < everyone) | (key < everyone) | own

    some, whole = kept_blocks(everyone, frame, tokens, device)
    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole),
        *_listed(whole),
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=keeps,
        seq_lengths=(tokens, tokens),
    )


def kept_blocks(everyone: int, frame: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which blocks hold a kept pair, and which hold kept pairs only, each boolean (blocks, blocks).

    A block that reaches over the end counts as holding some only, as FlexAttention's own masks have it.
    """
    starts = torch.arange(0, tokens, BLOCK, device=device)
    ends = (starts + BLOCK).clamp(max=tokens)
    first, last = ((starts - everyone).clamp(min=0) // frame, (ends - 1 - everyone) // frame)
    some_global, all_global = starts < everyone, ends <= everyone
    meet = (first[:, None] <= last[None, :]) & (first[None, :] <= last[:, None]) & ~all_global & ~all_global[:, None]
    one = (first == last) & ~all_global
    alone = one[:, None] & one[None, :] & (first[:, None] == first[None, :])
    some = some_global[:, None] | some_global[None, :] | meet
    inside = starts + BLOCK <= tokens
    whole = (all_global[:, None] | all_global[None, :] | alone) & inside[:, None] & inside[None, :]
    return some, whole


def _listed(kept: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of blocks their number (1, 1, R) and their columns (1, 1, R, R), the kept ones first: int32."""
    columns = torch.argsort(kept.to(torch.int8), dim=1, descending=True, stable=True)
    return kept.sum(1, dtype=torch.int32)[None, None], columns.to(torch.int32)[None, None]


@cache
def _flex_attention(is_compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False, fullgraph=True) if is_compiled else flex_attention
