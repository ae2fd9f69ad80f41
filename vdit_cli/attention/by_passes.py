"""The attention of a tile mask as dense passes joined by their log-sum-exp: one operator, forward and backward.

It is an operator so that a compiled model holds it as a single call: no graph break, nothing of it traced. Letters:
B batch, N tokens in the order of the passes, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from vdit_cli.attention.dense import DenseCall, Kept, named, pick
from vdit_cli.attention.derivatives import differentiable_once
from vdit_cli.attention.merge import Piece, join, pieces
from vdit_cli.tiles.passes import Pass

PICKED = ""
"""In the place of a dense call's name: the first of DENSE_CALLS that takes all passes."""


def attend_by_passes(
    q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, passes: Sequence[Pass], scale: float, call: str = PICKED
) -> Tensor:
    """Attention (B, N, H, D) over the pairs of `passes` by the dense call named `call`; differentiable once.

    Passes that share their queries must follow each other in the list.
    """
    out, _, _ = _attend(q_BNHD, k_BNHD, v_BNHD, spelled(passes), scale, call)
    return out


def spelled(passes: Sequence[Pass]) -> list[int]:
    """Passes as plain numbers, as an operator takes them: for each queries, parts, number of key ranges, key ranges."""
    numbers: list[int] = []
    for each in passes:
        numbers += [each.queries.start, each.queries.stop, each.parts, len(each.keys)]
        for keys in each.keys:
            numbers += [keys.start, keys.stop]
    return numbers


def read(numbers: Sequence[int]) -> tuple[Pass, ...]:
    """The inverse of `spelled`."""
    passes, at = [], 0
    while at < len(numbers):
        start, stop, parts, count = numbers[at : at + 4]
        ends = at + 4 + 2 * count
        keys = tuple(range(numbers[i], numbers[i + 1]) for i in range(at + 4, ends, 2))
        passes.append(Pass(range(start, stop), keys, parts))
        at = ends
    return tuple(passes)


def forward_by_passes(
    q: Tensor, k: Tensor, v: Tensor, numbers: Sequence[int], scale: float, call: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute each piece and join those that share their queries: output, log-sum-exp, what backward wants back.

    Beside these the result of one piece is alive, and no copy of an operand.
    """
    passes = read(numbers)
    dense = _dense_call(call, q, k, v, passes)
    if len(passes) == len(passes[0].keys) == 1:
        (only,) = pieces(passes, len(q))
        out, lse, wanted = dense.forward(*only.operands(q, k, v), scale)
        return out.transpose(1, 2).contiguous(), lse.transpose(1, 2).contiguous(), list(wanted)
    out, lse = _outputs(q)
    kept: list[Tensor] = []
    for piece in pieces(passes, len(q)):
        into = piece.of_queries(out), _numbers_of(piece, lse)
        found, found_lse, wanted = dense.forward(*piece.operands(q, k, v), scale)
        found, found_lse = found.transpose(1, 2), found_lse.transpose(1, 2)
        if piece.joins:
            join(into, (found, found_lse))
        else:
            into[0].copy_(found)
            into[1].copy_(found_lse)
        del found  # before the next one is there
        kept += wanted
    return out, lse, kept


_attend = custom_op("evdit::attend_by_passes", forward_by_passes, mutates_args=())


@_attend.register_fake
def _attend_shapes(
    q: Tensor, k: Tensor, v: Tensor, numbers: Sequence[int], scale: float, call: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    passes = read(numbers)
    dense = _dense_call(call, q, k, v, passes)
    kept: list[Tensor] = []
    if dense.keeps:
        for piece in pieces(passes, len(q)):
            kept += dense.forward(*piece.operands(q, k, v), scale)[2]
    return *_outputs(q), kept


def backward_by_passes(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    kept: Sequence[Tensor],
    numbers: Sequence[int],
    scale: float,
    call: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add up what each piece's own backward gives for the joined output and log-sum-exp.

    No operator gives a gradient through its lse. But d scores = p (dO v - dO . O), p = exp(score - lse), holds for any
    part of the keys when O and lse are those of all keys, so each piece yields its share of dq, dk, dv.
    """
    passes = read(numbers)
    dense = _dense_call(call, q, k, v, passes)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    dq, dk, dv = _gradients(q, k, v, fill=torch.zeros_like)
    calls = list(pieces(passes, len(q)))
    for piece, state in zip(calls, _in_parts(kept, len(calls)), strict=True):
        of_queries = (piece.of_queries(x).transpose(1, 2) for x in (grad, out))
        grad_part, out_part, lse_part = *of_queries, _numbers_of(piece, lse).transpose(1, 2)
        found = dense.backward(grad_part, *piece.operands(q, k, v), out_part, lse_part, scale, state)
        for total, share in zip(piece.operands(dq, dk, dv), found, strict=True):
            total += share
        del found, share  # before the next ones are there
    return dq, dk, dv


_attend_backward = custom_op("evdit::attend_by_passes_backward", backward_by_passes, mutates_args=())


@_attend_backward.register_fake
def _attend_backward_shapes(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(q, k, v, fill=torch.empty_like)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, list[Tensor]]) -> None:
    q, k, v, ctx.numbers, ctx.scale, ctx.call = inputs
    out, lse, kept = output
    ctx.save_for_backward(q, k, v, out, lse, *kept)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *kept = ctx.saved_tensors
    return *_attend_backward(grad, q, k, v, out, lse, kept, ctx.numbers, ctx.scale, ctx.call), None, None, None


differentiable_once(_attend, _attend_backward, _differentiate, _save)


def _dense_call(call: str, q: Tensor, k: Tensor, v: Tensor, passes: Sequence[Pass]) -> DenseCall:
    if call != PICKED:
        return named(call)
    return pick([piece.operands(q, k, v) for piece in pieces(passes, 1)])


def _numbers_of(piece: Piece, lse_BNH: Tensor) -> Tensor:
    """A number a query and head, cut as the queries of `piece` are: (B*P, N/P, H)."""
    return piece.of_queries(lse_BNH.unsqueeze(-1)).squeeze(-1)


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    """Room for the output and the log-sum-exp (B, N, H), which is never of a half type."""
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))


def _gradients(q: Tensor, k: Tensor, v: Tensor, fill: Any) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (fill(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return dq, dk, dv


def _in_parts(kept: Sequence[Tensor], calls: int) -> list[Kept]:
    """What was kept, a tuple a call; each call keeps as much."""
    each = len(kept) // calls
    return [tuple(kept[i * each : (i + 1) * each]) for i in range(calls)]
