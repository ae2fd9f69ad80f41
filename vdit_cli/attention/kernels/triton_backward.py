"""Gradients of tile attention in Triton, deterministic: no two programs write to one place.

With O and the log-sum-exp of all keys a query sees: p = exp(score - lse), d score = p (dO v - dO . O). One launch gives
dO . O; one walks from a block of queries over its keys and sums dq; one walks from a block of keys over the queries
that see it, which is the same walk, and sums dk and dv. Letters: B batch, N tokens in the order of the passes, H heads,
D head width = W0 + W1 + W2, powers of two.
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

MEAN_ROWS = 64
"""Rows that a program of `_mean` takes."""


@triton.jit(do_not_specialize=("tokens", "heads"))
def _mean(
    G, OUT, MEAN, g_b, g_n, g_h, o_b, o_n, o_h, tokens, heads,
    D: tl.constexpr, PADDED: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """The sum over D of dO * O for OWN rows: (B, H, N) in float32."""
    sequence = tl.program_id(1)
    rows = tl.program_id(0) * OWN + tl.arange(0, OWN)
    inside = rows < tokens
    kept = inside[:, None] & (tl.arange(0, PADDED) < D)[None, :]
    g_rows = rows.to(tl.int64) * g_n
    o_rows = rows.to(tl.int64) * o_n
    g_base = head_of(G, sequence, heads, g_b, g_h)
    o_base = head_of(OUT, sequence, heads, o_b, o_h)
    grad = tl.load(g_base + g_rows[:, None] + tl.arange(0, PADDED)[None, :], mask=kept, other=0.0)
    out = tl.load(o_base + o_rows[:, None] + tl.arange(0, PADDED)[None, :], mask=kept, other=0.0)
    mean = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(MEAN + sequence.to(tl.int64) * tokens + rows, mean, mask=inside)


@tuned((128, 128, 8, 2), (128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 32, 4, 2))
@triton.jit(do_not_specialize=SIZES)
def _to_queries(
    Q, K, V, G, LSE, MEAN, DQ,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h, dq_b, dq_n, dq_h,
    scale, scale2, tokens, everyone, frame, others, sequences, heads, rough,
    W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, WIDE: tl.constexpr,
    OWN: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    """dq of OWN queries; `scale` is D ** -0.5, and `scale2` that times log2(e)."""
    sequence, first, stop, length, jump = place(tl.program_id(0), tokens, everyone, frame, others, sequences, OWN)
    q_base = head_of(Q, sequence, heads, q_b, q_h)
    k_base = head_of(K, sequence, heads, k_b, k_h)
    v_base = head_of(V, sequence, heads, v_b, v_h)
    g_base = head_of(G, sequence, heads, g_b, g_h)
    rows = first + tl.arange(0, OWN)
    inside = rows < stop
    numbers = sequence.to(tl.int64) * tokens + rows
    # A row past the end gets an infinite log-sum-exp, so its shares are zero.
    lse2 = tl.load(LSE + numbers, mask=inside, other=float("inf")) * 1.4426950408889634
    mean = tl.load(MEAN + numbers, mask=inside, other=0.0)

    q0 = load(q_base, rows, q_n, inside, 0, W0, WIDE, True)
    g0 = load(g_base, rows, g_n, inside, 0, W0, WIDE, True)
    dq0 = tl.zeros((OWN, W0), tl.float32)
    if W1 > 0:
        q1 = load(q_base, rows, q_n, inside, W0, W1, WIDE, True)
        g1 = load(g_base, rows, g_n, inside, W0, W1, WIDE, True)
        dq1 = tl.zeros((OWN, W1), tl.float32)
    if W2 > 0:
        q2 = load(q_base, rows, q_n, inside, W0 + W1, W2, WIDE, True)
        g2 = load(g_base, rows, g_n, inside, W0 + W1, W2, WIDE, True)
        dq2 = tl.zeros((OWN, W2), tl.float32)

    whole = length - length % WALK
    for MASKED in tl.static_range(2):  # whole steps, then the rest of the walk as one masked step
        for start in tl.range(whole * MASKED, whole + (length - whole) * MASKED, WALK):
            places = start + tl.arange(0, WALK)
            kept = places < length
            keys = places + tl.where(places >= everyone, jump, 0)
            k0 = load(k_base, keys, k_n, kept, 0, W0, WIDE, MASKED)
            v0 = load(v_base, keys, v_n, kept, 0, W0, WIDE, MASKED)
            scores = tl.dot(q0, tl.trans(k0), input_precision="ieee")
            changes = tl.dot(g0, tl.trans(v0), input_precision="ieee")
            if W1 > 0:
                k1 = load(k_base, keys, k_n, kept, W0, W1, WIDE, MASKED)
                v1 = load(v_base, keys, v_n, kept, W0, W1, WIDE, MASKED)
                scores = tl.dot(q1, tl.trans(k1), scores, input_precision="ieee")
                changes = tl.dot(g1, tl.trans(v1), changes, input_precision="ieee")
            if W2 > 0:
                k2 = load(k_base, keys, k_n, kept, W0 + W1, W2, WIDE, MASKED)
                v2 = load(v_base, keys, v_n, kept, W0 + W1, W2, WIDE, MASKED)
                scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee")
                changes = tl.dot(g2, tl.trans(v2), changes, input_precision="ieee")
            if MASKED:
                scores = tl.where(kept[None, :], scores, float("-inf"))
            shares = tl.exp2(scores * scale2 - lse2[:, None])
            d_scores = (shares * (changes - mean[:, None])).to(k0.dtype)
            dq0 = tl.dot(d_scores, k0, dq0, input_precision="ieee")
            if W1 > 0:
                dq1 = tl.dot(d_scores, k1, dq1, input_precision="ieee")
            if W2 > 0:
                dq2 = tl.dot(d_scores, k2, dq2, input_precision="ieee")

    dq_base = head_of(DQ, sequence, heads, dq_b, dq_h)
    store(dq_base, rows, dq_n, inside, dq0 * scale, 0, W0, WIDE)
    if W1 > 0:
        store(dq_base, rows, dq_n, inside, dq1 * scale, W0, W1, WIDE)
    if W2 > 0:
        store(dq_base, rows, dq_n, inside, dq2 * scale, W0 + W1, W2, WIDE)


@tuned(
    (128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 3), (64, 64, 8, 2), (64, 64, 4, 2), (64, 32, 4, 3), (64, 32, 4, 2)
)
@triton.jit(do_not_specialize=SIZES)
def _to_keys(
    Q, K, V, G, LSE, MEAN, DK, DV,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h, dk_b, dk_n, dk_h, dv_b, dv_n, dv_h,
    scale, scale2, tokens, everyone, frame, others, sequences, heads, rough,
    W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr, WIDE: tl.constexpr,
    OWN: tl.constexpr, WALK: tl.constexpr,
):  # fmt: skip
    """dk and dv of OWN keys, scores held keys x queries; `scale` is D ** -0.5, and `scale2` that times log2(e)."""
    sequence, first, stop, length, jump = place(tl.program_id(0), tokens, everyone, frame, others, sequences, OWN)
    q_base = head_of(Q, sequence, heads, q_b, q_h)
    k_base = head_of(K, sequence, heads, k_b, k_h)
    v_base = head_of(V, sequence, heads, v_b, v_h)
    g_base = head_of(G, sequence, heads, g_b, g_h)
    rows = first + tl.arange(0, OWN)
    inside = rows < stop
    numbers = sequence.to(tl.int64) * tokens

    k0 = load(k_base, rows, k_n, inside, 0, W0, WIDE, True)
    v0 = load(v_base, rows, v_n, inside, 0, W0, WIDE, True)
    dk0 = tl.zeros((OWN, W0), tl.float32)
    dv0 = tl.zeros((OWN, W0), tl.float32)
    if W1 > 0:
        k1 = load(k_base, rows, k_n, inside, W0, W1, WIDE, True)
        v1 = load(v_base, rows, v_n, inside, W0, W1, WIDE, True)
        dk1 = tl.zeros((OWN, W1), tl.float32)
        dv1 = tl.zeros((OWN, W1), tl.float32)
    if W2 > 0:
        k2 = load(k_base, rows, k_n, inside, W0 + W1, W2, WIDE, True)
        v2 = load(v_base, rows, v_n, inside, W0 + W1, W2, WIDE, True)
        dk2 = tl.zeros((OWN, W2), tl.float32)
        dv2 = tl.zeros((OWN, W2), tl.float32)

    whole = length - length % WALK
    for MASKED in tl.static_range(2):  # whole steps, then the rest of the walk as one masked step
        for start in tl.range(whole * MASKED, whole + (length - whole) * MASKED, WALK):
            places = start + tl.arange(0, WALK)
            kept = places < length
            queries = places + tl.where(places >= everyone, jump, 0)
            q0 = load(q_base, queries, q_n, kept, 0, W0, WIDE, MASKED)
            g0 = load(g_base, queries, g_n, kept, 0, W0, WIDE, MASKED)
            if MASKED:  # an infinite log-sum-exp: the shares of a query past the end are zero
                lse2 = tl.load(LSE + numbers + queries, mask=kept, other=float("inf")) * 1.4426950408889634
                mean = tl.load(MEAN + numbers + queries, mask=kept, other=0.0)
            else:
                lse2 = tl.load(LSE + numbers + queries) * 1.4426950408889634
                mean = tl.load(MEAN + numbers + queries)
            scores = tl.dot(k0, tl.trans(q0), input_precision="ieee")
            changes = tl.dot(v0, tl.trans(g0), input_precision="ieee")
            if W1 > 0:
                q1 = load(q_base, queries, q_n, kept, W0, W1, WIDE, MASKED)
                g1 = load(g_base, queries, g_n, kept, W0, W1, WIDE, MASKED)
                scores = tl.dot(k1, tl.trans(q1), scores, input_precision="ieee")
                changes = tl.dot(v1, tl.trans(g1), changes, input_precision="ieee")
            if W2 > 0:
                q2 = load(q_base, queries, q_n, kept, W0 + W1, W2, WIDE, MASKED)
                g2 = load(g_base, queries, g_n, kept, W0 + W1, W2, WIDE, MASKED)
                scores = tl.dot(k2, tl.trans(q2), scores, input_precision="ieee")
                changes = tl.dot(v2, tl.trans(g2), changes, input_precision="ieee")
            shares = tl.exp2(scores * scale2 - lse2[None, :])
            d_scores = (shares * (changes - mean[None, :])).to(q0.dtype)
            shares = shares.to(g0.dtype)
            dv0 = tl.dot(shares, g0, dv0, input_precision="ieee")
            dk0 = tl.dot(d_scores, q0, dk0, input_precision="ieee")
            if W1 > 0:
                dv1 = tl.dot(shares, g1, dv1, input_precision="ieee")
                dk1 = tl.dot(d_scores, q1, dk1, input_precision="ieee")
            if W2 > 0:
                dv2 = tl.dot(shares, g2, dv2, input_precision="ieee")
                dk2 = tl.dot(d_scores, q2, dk2, input_precision="ieee")

    dk_base = head_of(DK, sequence, heads, dk_b, dk_h)
    dv_base = head_of(DV, sequence, heads, dv_b, dv_h)
    store(dk_base, rows, dk_n, inside, dk0 * scale, 0, W0, WIDE)
    store(dv_base, rows, dv_n, inside, dv0, 0, W0, WIDE)
    if W1 > 0:
        store(dk_base, rows, dk_n, inside, dk1 * scale, W0, W1, WIDE)
        store(dv_base, rows, dv_n, inside, dv1, W0, W1, WIDE)
    if W2 > 0:
        store(dk_base, rows, dk_n, inside, dk2 * scale, W0 + W1, W2, WIDE)
        store(dv_base, rows, dv_n, inside, dv2, W0 + W1, W2, WIDE)


def backward(
    grad_BNHD: Tensor, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, out_BNHD: Tensor, lse_BHN: Tensor, walk: Walk,
    wanted: tuple[bool, ...] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dq, dk, dv) of (B, N, H, D), empty where not `wanted`, from `forward`'s results; last axes are contiguous."""
    batch, tokens, heads, head_dim = q_BNHD.shape
    sequences = batch * heads
    asked = wanted[0], wanted[1] or wanted[2], wanted[1] or wanted[2]  # dk and dv come together
    dq, dk, dv = (
        torch.empty(q_BNHD.shape if each else (0,), dtype=q_BNHD.dtype, device=q_BNHD.device) for each in asked
    )
    mean = torch.empty(lse_BHN.shape, dtype=torch.float32, device=q_BNHD.device)
    operands = q_BNHD, k_BNHD, v_BNHD, grad_BNHD
    wide = is_wide(*operands, out_BNHD)
    scale = head_dim**-0.5
    sizes = scale, scale * math.log2(math.e), *walk, sequences, heads, rough(walk), *widths(head_dim), wide

    def grid(chosen: dict[str, int]) -> tuple[int]:
        return (programs(walk, chosen["OWN"], sequences),)

    with torch.cuda.device_of(q_BNHD):
        _mean[(triton.cdiv(tokens, MEAN_ROWS), sequences)](
            grad_BNHD, out_BNHD, mean, *strides(grad_BNHD, out_BNHD), tokens, heads,
            head_dim, triton.next_power_of_2(head_dim), MEAN_ROWS, enable_fp_fusion=True,
        )  # fmt: skip
        if wanted[0]:
            _to_queries[grid](*operands, lse_BHN, mean, dq, *strides(*operands, dq), *sizes)
        if wanted[1] or wanted[2]:
            _to_keys[grid](*operands, lse_BHN, mean, dk, dv, *strides(*operands, dk, dv), *sizes)
    return dq, dk if wanted[1] else dk.new_empty(0), dv if wanted[2] else dv.new_empty(0)
