"""Tile attention forward in one Triton launch: each program owns a block of queries and walks over the keys it sees.

Softmax goes along with the walk in float32, in powers of two. Letters: B batch, N tokens in the order of the passes,
H heads, D head width = W0 + W1 + W2, powers of two.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdit_cli.attention.kernels.triton_walk import (
    SIZES,
    head_of,
    is_wide,
    load,
    place,
    programs,
    rough,
    store,
    strides,
    tuned,
    widths,
)
from vdit_cli.attention.kernels.walk import Walk


@tuned(
    (128, 128, 8, 3), (128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (128, 64, 4, 3), (64, 128, 4, 2),
    (64, 64, 4, 3), (64, 64, 4, 2),
)  # fmt: skip
@triton.jit(do_not_specialize=SIZES)
def _forward(
    Q, K, V, OUT, LSE,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, o_b, o_n, o_h,
    scale, tokens, everyone, frame, others, sequences, heads, rough,
    W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, WIDE: tl.constexpr,
    OWN: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    """Output and natural log-sum-exp (B, H, N) of OWN queries; `scale` holds D ** -0.5 * log2(e)."""
    sequence, first, stop, length, jump = place(tl.program_id(0), tokens, everyone, frame, others, sequences, OWN)
    q_base = head_of(Q, sequence, heads, q_b, q_h)
    k_base = head_of(K, sequence, heads, k_b, k_h)
    v_base = head_of(V, sequence, heads, v_b, v_h)
    o_base = head_of(OUT, sequence, heads, o_b, o_h)
    rows = first + tl.arange(0, OWN)
    inside = rows < stop

    q0 = load(q_base, rows, q_n, inside, 0, W0, WIDE, True)
    o0 = tl.zeros((OWN, W0), tl.float32)
    if W1 > 0:
        q1 = load(q_base, rows, q_n, inside, W0, W1, WIDE, True)
        o1 = tl.zeros((OWN, W1), tl.float32)
    if W2 > 0:
        q2 = load(q_base, rows, q_n, inside, W0 + W1, W2, WIDE, True)
        o2 = tl.zeros((OWN, W2), tl.float32)
    top = tl.full((OWN,), float("-inf"), tl.float32)
    total = tl.zeros((OWN,), tl.float32)

    whole = length - length % WALK
    for MASKED in tl.static_range(2):  # whole steps, then the rest of the walk as one masked step
        for start in tl.range(whole * MASKED, whole + (length - whole) * MASKED, WALK):
            places = start + tl.arange(0, WALK)
            kept = places < length
            keys = places + tl.where(places >= everyone, jump, 0)
            k0 = load(k_base, keys, k_n, kept, 0, W0, WIDE, MASKED)
            scores = tl.dot(q0, tl.trans(k0), input_precision="ieee")
            if W1 > 0:
                k1 = load(k_base, keys, k_n, kept, W0, W1, WIDE, MASKED)
                scores = tl.dot(q1, tl.trans(k1), scores, input_precision="ieee")
            if W2 > 0:
                k2 = load(k_base, keys, k_n, kept, W0 + W1, W2, WIDE, MASKED)
                scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
            if MASKED:
                scores = tl.where(kept[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, 1) * scale)
            shares = tl.exp2(scores * scale - higher[:, None])
            fade = tl.exp2(top - higher)
            top = higher
            total = total * fade + tl.sum(shares, 1)
            v0 = load(v_base, keys, v_n, kept, 0, W0, WIDE, MASKED)
            shares = shares.to(v0.dtype)
            o0 = tl.dot(shares, v0, o0 * fade[:, None], input_precision="ieee")
            if W1 > 0:
                v1 = load(v_base, keys, v_n, kept, W0, W1, WIDE, MASKED)
                o1 = tl.dot(shares, v1, o1 * fade[:, None], input_precision="ieee")
            if W2 > 0:
                v2 = load(v_base, keys, v_n, kept, W0 + W1, W2, WIDE, MASKED)
                o2 = tl.dot(shares, v2, o2 * fade[:, None], input_precision="ieee")

    store(o_base, rows, o_n, inside, o0 / total[:, None], 0, W0, WIDE)
    if W1 > 0:
        store(o_base, rows, o_n, inside, o1 / total[:, None], W0, W1, WIDE)
    if W2 > 0:
        store(o_base, rows, o_n, inside, o2 / total[:, None], W0 + W1, W2, WIDE)
    lse = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(LSE + sequence.to(tl.int64) * tokens + rows, lse, mask=inside)


def forward(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, walk: Walk) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and float32 log-sum-exp (B, H, N) over the pairs of `walk`; the last axes are contiguous."""
    batch, tokens, heads, head_dim = q_BNHD.shape
    out = torch.empty(q_BNHD.shape, dtype=q_BNHD.dtype, device=q_BNHD.device)
    lse = torch.empty((batch, heads, tokens), dtype=torch.float32, device=q_BNHD.device)
    operands = q_BNHD, k_BNHD, v_BNHD, out
    with torch.cuda.device_of(q_BNHD):
        _forward[lambda chosen: (programs(walk, chosen["OWN"], batch * heads),)](
            *operands, lse, *strides(*operands), head_dim**-0.5 * math.log2(math.e),
            *walk, batch * heads, heads, rough(walk),
            *widths(head_dim), is_wide(*operands),
        )  # fmt: skip
    return out, lse
