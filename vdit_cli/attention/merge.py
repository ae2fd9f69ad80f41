"""Passes joined by their log-sum-exp into the attention of a tile mask, with an exact backward.

Letters: B batch, N tokens in the order of the passes, H heads, D head width, P parts of a pass.
"""

from __future__ import annotations

from functools import reduce
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vdit_cli.attention.dense import DenseCall, Kept
from vdit_cli.tiles.passes import Pass

Part = tuple[Tensor, Tensor]
"""What attention over some of the keys gives: output (B, N, H, D) and log-sum-exp (B, N, H)."""


def attend_by_passes(
    q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, passes: tuple[Pass, ...], call: DenseCall, scale: float
) -> Tensor:
    """Attention (B, N, H, D) over the pairs of `passes`, each computed by `call`; differentiable once.

    Passes that share their queries must follow each other in the list.
    """
    return _ByPasses.apply(q_BNHD, k_BNHD, v_BNHD, passes, call, scale)


def join(one: Part, other: Part, into: Part | None = None) -> Part:
    """Attention over two disjoint sets of keys from that over each, written to `into` where that is given."""
    (out1, lse1), (out2, lse2) = one, other
    share2 = torch.sigmoid(lse2 - lse1).unsqueeze(-1)
    if into is not None and into[0].dtype == share2.dtype:
        torch.lerp(out1, out2, share2, out=into[0])  # no memory of its own: fresh pages cost as much as the sum
        return into[0], torch.logaddexp(lse1, lse2, out=into[1])
    out = torch.lerp(out1.to(share2.dtype), out2.to(share2.dtype), share2).to(out1.dtype)
    lse = torch.logaddexp(lse1, lse2)
    return (out, lse) if into is None else (into[0].copy_(out), into[1].copy_(lse))


class _ByPasses(Function):
    """Dense calls and their joining. No operator gives a gradient through its lse, so backward is written out:

    d scores = p (dO v - dO . O), p = exp(score - lse), holds for any part of the keys when O and lse are those of all
    keys. So each pass's own backward, given the joined output and lse, yields its share of dq, dk, dv; they add up.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, passes: tuple[Pass, ...], call: DenseCall, scale: float
    ) -> Tensor:
        """Compute each pass and join those that share their queries."""
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
        kept: list[Kept] = []
        for queries, group in groupby(passes, key=lambda each: each.queries):
            found = []
            for keys, parts in ((keys, each.parts) for each in group for keys in each.keys):
                part_out, part_lse, wanted = call.forward(*operands(q, k, v, queries, keys, parts), scale)
                found.append((uncut(part_out, parts), uncut(part_lse.unsqueeze(-1), parts).squeeze(-1)))
                kept.append(wanted)
            rows = slice(queries.start, queries.stop)
            if len(found) == 1:
                out[:, rows], lse[:, rows] = found[0]
            else:
                join(reduce(join, found[:-1]), found[-1], into=(out[:, rows], lse[:, rows]))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.passes, ctx.call, ctx.scale, ctx.kept = passes, call, scale, kept
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Add up what each pass's own backward gives for the joined output and lse."""
        q, k, v, out, lse = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        lse = lse.unsqueeze(-1)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        kept = iter(ctx.kept)
        for each in ctx.passes:
            rows, parts = each.queries, each.parts
            grad_part, out_part = cut(grad, rows, parts), cut(out, rows, parts)
            lse_part = cut(lse, rows, parts).squeeze(-1)
            for keys in each.keys:
                parts_qkv = operands(q, k, v, rows, keys, parts)
                found = ctx.call.backward(grad_part, *parts_qkv, out_part, lse_part, ctx.scale, next(kept))
                for total, places, piece in zip((dq, dk, dv), (rows, keys, keys), found, strict=True):
                    total[:, places.start : places.stop] += uncut(piece, parts)
        return dq, dk, dv, None, None, None


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
