"""What passes are made of and joined by: operands cut from whole tensors, and the log-sum-exp of their parts.

Letters: B batch, N tokens in the order of the passes, H heads, D head width, P parts of a pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdit_cli.attention.kernels import triton

Part = tuple[Tensor, Tensor]
"""What attention over some of the keys gives: output (B, N, H, D) and log-sum-exp (B, N, H)."""


def join(one: Part, other: Part, into: Part | None = None) -> Part:
    """Attention over two disjoint sets of keys from that over each, written to `into` where that is given."""
    if triton.joins(one, other, into):
        return triton.join(one, other, into)
    (out1, lse1), (out2, lse2) = one, other
    share2 = torch.sigmoid(lse2 - lse1).unsqueeze(-1)
    if into is not None and into[0].dtype == share2.dtype:
        torch.lerp(out1, out2, share2, out=into[0])  # no memory of its own: fresh pages cost as much as the sum
        return into[0], torch.logaddexp(lse1, lse2, out=into[1])
    out = torch.lerp(out1.to(share2.dtype), out2.to(share2.dtype), share2).to(out1.dtype)
    lse = torch.logaddexp(lse1, lse2)
    return (out, lse) if into is None else (into[0].copy_(out), into[1].copy_(lse))


def operands(
    q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, queries: range, keys: range, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What a dense call of `queries` against `keys` in `parts` diagonal blocks takes."""
    return cut(q_BNHD, queries, parts), cut(k_BNHD, keys, parts), cut(v_BNHD, keys, parts)


def cut(x_BNHD: Tensor, places: range, parts: int) -> Tensor:
    """The tokens in `places` as (B*P, H, N/P, D): a view for one part or one video, else a copy."""
    return x_BNHD[:, places.start : places.stop].unflatten(1, (parts, -1)).flatten(0, 1).transpose(1, 2)


def uncut(x_BHND: Tensor, parts: int) -> Tensor:
    """The inverse of `cut`: (B*P, H, N/P, D) as (B, N, H, D)."""
    return x_BHND.transpose(1, 2).unflatten(0, (-1, parts)).flatten(1, 2)
