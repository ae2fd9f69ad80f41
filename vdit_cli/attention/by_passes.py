"""The attention of a tile mask as dense passes joined by their log-sum-exp: one operator, forward and backward.

It is an operator so that a compiled model holds it as a single call: no graph break, nothing of it traced. Letters:
B batch, N tokens in the order of the passes, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from vdit_cli.attention.dense import DenseCall, Kept, named, pick
from vdit_cli.attention.derivatives import differentiable_once
from vdit_cli.attention.merge import cut, join, operands, uncut
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


@custom_op("evdit::attend_by_passes", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, numbers: Sequence[int], scale: float, call: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Compute each pass and join those that share their queries: output, log-sum-exp, what backward wants back."""
    passes = read(numbers)
    dense = _dense_call(call, q, k, v, passes)
    out, lse = _outputs(q)
    kept: list[Tensor] = []
    for queries, group in groupby(passes, key=lambda each: each.queries):
        found = []
        for keys, parts in ((keys, each.parts) for each in group for keys in each.keys):
            part_out, part_lse, wanted = dense.forward(*operands(q, k, v, queries, keys, parts), scale)
            found.append((uncut(part_out, parts), uncut(part_lse.unsqueeze(-1), parts).squeeze(-1)))
            kept += wanted
        rows = slice(queries.start, queries.stop)
        if len(passes) == len(found) == 1:
            out, lse = (x.contiguous() for x in found[0])
        elif len(found) == 1:
            out[:, rows], lse[:, rows] = found[0]
        else:
            join(reduce(join, found[:-1]), found[-1], into=(out[:, rows], lse[:, rows]))
    return out, lse, kept


@_attend.register_fake
def _attend_shapes(
    q: Tensor, k: Tensor, v: Tensor, numbers: Sequence[int], scale: float, call: str
) -> tuple[Tensor, Tensor, list[Tensor]]:
    passes = read(numbers)
    dense = _dense_call(call, q, k, v, passes)
    kept: list[Tensor] = []
    if dense.keeps:
        for each in passes:
            for keys in each.keys:
                kept += dense.forward(*operands(q, k, v, each.queries, keys, each.parts), scale)[2]
    return *_outputs(q), kept


@custom_op("evdit::attend_by_passes_backward", mutates_args=())
def _attend_backward(
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
    """Add up what each pass's own backward gives for the joined output and log-sum-exp.

    No operator gives a gradient through its lse. But d scores = p (dO v - dO . O), p = exp(score - lse), holds for any
    part of the keys when O and lse are those of all keys, so each pass yields its share of dq, dk, dv.
    """
    passes = read(numbers)
    dense = _dense_call(call, q, k, v, passes)
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    lse = lse.unsqueeze(-1)
    dq, dk, dv = _gradients(q, k, v, fill=torch.zeros_like)
    states = iter(_in_parts(kept, sum(len(each.keys) for each in passes)))
    for each in passes:
        rows, parts = each.queries, each.parts
        grad_part, out_part = cut(grad, rows, parts), cut(out, rows, parts)
        lse_part = cut(lse, rows, parts).squeeze(-1)
        for keys in each.keys:
            of_keys = operands(q, k, v, rows, keys, parts)
            found = dense.backward(grad_part, *of_keys, out_part, lse_part, scale, next(states))
            for total, places, piece in zip((dq, dk, dv), (rows, keys, keys), found, strict=True):
                total[:, places.start : places.stop] += uncut(piece, parts)
    return dq, dk, dv


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
    one = q[:1], k[:1], v[:1]  # of one video every part is a view
    return pick([operands(*one, each.queries, keys, each.parts) for each in passes for keys in each.keys])


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
