"""Attention over two disjoint sets of keys joined by their log-sum-exp in one Triton launch.

Letters: B batch, N tokens, H heads, D head width.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
"""Rows (a token of a head) that a program joins."""

Part = tuple[Tensor, Tensor]
"""What attention over some of the keys gives: output (B, N, H, D) and log-sum-exp (B, N, H)."""


@triton.jit(do_not_specialize=("tokens", "heads"))
def _join(
    OUT1, LSE1, OUT2, LSE2, OUT, LSE,
    o1_b, o1_n, o1_h, l1_b, l1_n, l1_h, o2_b, o2_n, o2_h, l2_b, l2_n, l2_h, o_b, o_n, o_h, l_b, l_n, l_h,
    tokens, heads, D: tl.constexpr, PADDED: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """OWN rows of one video; each program reads its rows of both parts before it writes them, so OUT may be OUT1."""
    rows = tl.program_id(0).to(tl.int64) * OWN + tl.arange(0, OWN)
    video = tl.program_id(1).to(tl.int64)
    token = rows // heads
    head = rows % heads
    inside = token < tokens
    columns = tl.arange(0, PADDED)
    kept = inside[:, None] & (columns < D)[None, :]
    lse1 = tl.load(LSE1 + video * l1_b + token * l1_n + head * l1_h, mask=inside, other=0.0)
    lse2 = tl.load(LSE2 + video * l2_b + token * l2_n + head * l2_h, mask=inside, other=0.0)
    at1 = (token * o1_n + head * o1_h)[:, None] + columns[None, :]
    at2 = (token * o2_n + head * o2_h)[:, None] + columns[None, :]
    out1 = tl.load(OUT1 + video * o1_b + at1, mask=kept, other=0.0).to(tl.float32)
    out2 = tl.load(OUT2 + video * o2_b + at2, mask=kept, other=0.0).to(tl.float32)
    # The larger of the two weighs 1 before the division: nothing overflows, however far apart they are.
    top = tl.maximum(lse1, lse2)
    weight1 = tl.exp(lse1 - top)
    weight2 = tl.exp(lse2 - top)
    total = weight1 + weight2
    out = out1 * (weight1 / total)[:, None] + out2 * (weight2 / total)[:, None]
    at = (token * o_n + head * o_h)[:, None] + columns[None, :]
    tl.store(OUT + video * o_b + at, out.to(OUT.dtype.element_ty), mask=kept)
    tl.store(LSE + video * l_b + token * l_n + head * l_h, top + tl.log(total), mask=inside)


def join(one: Part, other: Part, into: Part | None = None) -> Part:
    """Attention over both sets of keys, written to `into` where given, which may be `one` or `other` itself.

    Outputs are of one type, half or float32, with a contiguous head; log-sum-exps are float32.
    """
    (out1, lse1), (out2, lse2) = one, other
    if into is None:
        into = torch.empty(out1.shape, dtype=out1.dtype, device=out1.device), torch.empty_like(lse1)
    batch, tokens, heads, head_dim = out1.shape
    outs = [stride for x in (out1, lse1, out2, lse2, *into) for stride in x.stride()[:3]]
    with torch.cuda.device_of(out1):
        _join[(triton.cdiv(tokens * heads, ROWS), batch)](
            out1, lse1, out2, lse2, *into, *outs, tokens, heads, head_dim, triton.next_power_of_2(head_dim), ROWS,
            enable_fp_fusion=True,
        )  # fmt: skip
    return into
