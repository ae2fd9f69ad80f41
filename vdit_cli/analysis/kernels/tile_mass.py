"""Tile masses in Triton: one pass over the scores gives each query its log-sum-exp over every frame's keys.

The mass that a query gives to a frame is the softmax of these F numbers, since the exponentials of a frame's scores
add up to exp(its log-sum-exp). So scores are computed once, no values are read, and what is stored is N x H x F
numbers, as many heads at a time as STORED_BYTES allows.

Letters: N tokens, H heads, D head width, F latent frames, S tokens a frame, G = F + 2 groups of keys: the frames, the
text before them, the text after them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdit_cli.tiles.grid import VideoGrid

STORED_BYTES = 48 << 20
"""Most bytes of log-sum-exps at a time; their softmax needs as many again."""
LOG2_E = 1.4426950408889634
OWN, WALK = 128, 64
"""Queries that a program owns, keys that it takes a step."""


@triton.jit
def group_lse_kernel(
    q, k, lse, scale, stride_qn, stride_qh, stride_kn, stride_kh, before, after, frame, frames, width,
    OWN: tl.constexpr, WALK: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp, base 2, of the scores of OWN video queries of one head over each group of keys.

    `q` and `k` are (N, H, D) with a contiguous last axis, `lse` (H, F * S, G) contiguous; `scale` is D**-.5 * log2(e).
    A group without keys gets -inf. Programs: (blocks of OWN queries, heads).
    """
    head = tl.program_id(1)
    queries = frames * frame
    rows = tl.program_id(0) * OWN + tl.arange(0, OWN)
    columns = tl.arange(0, WIDTH)
    q_at = q + head.to(tl.int64) * stride_qh + (before + rows)[:, None].to(tl.int64) * stride_qn + columns[None, :]
    q_tile = tl.load(q_at, mask=(rows < queries)[:, None] & (columns < width)[None, :], other=0.0)
    k_head = k + head.to(tl.int64) * stride_kh
    groups = frames + 2
    lse_at = lse + head.to(tl.int64) * queries * groups + rows.to(tl.int64) * groups
    for group in range(groups):
        start = tl.where(group < frames, before + group * frame, tl.where(group == frames, 0, before + queries))
        length = tl.where(group < frames, frame, tl.where(group == frames, before, after))
        peak = tl.full([OWN], float("-inf"), dtype=tl.float32)
        total = tl.zeros([OWN], dtype=tl.float32)
        for first in range(0, length, WALK):
            places = first + tl.arange(0, WALK)
            k_at = k_head + (start + places)[None, :].to(tl.int64) * stride_kn + columns[:, None]
            k_tile = tl.load(k_at, mask=(places < length)[None, :] & (columns < width)[:, None], other=0.0)
            scores = tl.dot(q_tile, k_tile, input_precision=PRECISION) * scale
            scores = tl.where((places < length)[None, :], scores, float("-inf"))
            higher = tl.maximum(peak, tl.max(scores, axis=1))
            total = total * tl.exp2(peak - higher) + tl.sum(tl.exp2(scores - higher[:, None]), axis=1)
            peak = higher
        tl.store(lse_at + group, peak + tl.log2(total), mask=rows < queries)


def tile_mass_by_triton(q_NHD: Tensor, k_NHD: Tensor, grid: VideoGrid) -> tuple[Tensor, Tensor]:
    """Masses (H, F, F) and text masses (H, F) as `tile_mass` gives them; float32 inputs are multiplied in float32."""
    tokens, heads, head_dim = q_NHD.shape
    if q_NHD.dtype == torch.float64:
        q_NHD, k_NHD = q_NHD.float(), k_NHD.float()
    q_NHD, k_NHD = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_NHD, k_NHD))
    groups, queries = grid.frames + 2, grid.video_tokens
    at_once = max(1, min(heads, STORED_BYTES // (4 * queries * groups)))
    masses = []
    for first in range(0, heads, at_once):
        q, k = q_NHD[:, first : first + at_once], k_NHD[:, first : first + at_once]
        lse = torch.empty(q.shape[1], queries, groups, dtype=torch.float32, device=q.device)
        group_lse_kernel[(triton.cdiv(queries, OWN), q.shape[1])](
            q, k, lse, head_dim**-0.5 * LOG2_E, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
            grid.text_before, grid.text_after, grid.frame_tokens, grid.frames, head_dim,
            OWN=OWN, WALK=WALK, WIDTH=max(16, triton.next_power_of_2(head_dim)),
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32", num_warps=8, num_stages=3,
        )  # fmt: skip
        lse = lse.sub_(lse.amax(dim=-1, keepdim=True)).exp2_()
        shares = lse.div_(lse.sum(dim=-1, keepdim=True))
        masses.append(shares.unflatten(1, (grid.frames, grid.frame_tokens)).mean(dim=2))
    mass_HFG = torch.cat(masses)
    return mass_HFG[..., : grid.frames], mass_HFG[..., grid.frames :].sum(dim=-1)
