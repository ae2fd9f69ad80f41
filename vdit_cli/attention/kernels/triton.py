"""Tile attention by our own Triton kernels: each block of rows walks over exactly the rows that it sees.

One launch forward and three backward for any mask, no padded head widths up to 128, no mask tensor, no copies.
Letters: B batch, N tokens in the order of the passes, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.library import custom_op

from vdit_cli.attention.derivatives import differentiable_once
from vdit_cli.attention.kernels.walk import Walk, walk_of
from vdit_cli.tiles.passes import Pass

if TYPE_CHECKING:
    from vdit_cli.attention.bind import Case

NAME = "triton"
Part = tuple[Tensor, Tensor]
"""What attention over some of the keys gives: output (B, N, H, D) and log-sum-exp (B, N, H)."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDTHS = range(16, 129, 16)
"""Head widths that the kernels take."""
CAPABILITY = (8, 0)
"""The oldest GPUs that the kernels are written for: Ampere."""


def supports(case: Case) -> str | None:
    """None, or why this kernel can't take `case`."""
    if case.dtype not in DTYPES:
        return f"{case.dtype} is none of float32, float16, bfloat16"
    if case.head_dim not in WIDTHS:
        return f"head width {case.head_dim} is no multiple of 16 from 16 to 128"
    return refuses_device(case.device)


@cache
def refuses_device(device: torch.device) -> str | None:
    """None, or why the kernels can't run on `device`."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if device.type == "cuda":
        found = torch.cuda.get_device_capability(device)
        if found >= CAPABILITY:
            return None
        return f"compute capability {'.'.join(map(str, found))} is below {'.'.join(map(str, CAPABILITY))}"
    if device.type == "cpu":
        from vdit_cli.attention.kernels.triton_walk import INTERPRETED

        return None if INTERPRETED else "on the CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1)"
    return f"it runs on CUDA devices, not on {device.type}"


def run(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, passes: tuple[Pass, ...]) -> Tensor:
    """Attention (B, N, H, D) over the pairs of `passes`, which are those of a tile mask; differentiable once."""
    out, _ = _attend(q_BNHD, k_BNHD, v_BNHD, list(walk_of(passes)))
    return out


@custom_op("evdit::walk_keys", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, walk: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and float32 log-sum-exp (B, H, N) of all keys that a query sees."""
    from vdit_cli.attention.kernels.triton_forward import forward

    return forward(_readable(q), _readable(k), _readable(v), Walk(*walk))


@_attend.register_fake
def _attend_shapes(q: Tensor, k: Tensor, v: Tensor, walk: Sequence[int]) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, tokens), dtype=torch.float32)


@custom_op("evdit::walk_keys_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    walk: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) from what `_attend` gave and the output's gradient; nothing in the place of one not `wanted`."""
    from vdit_cli.attention.kernels.triton_backward import backward

    grad, q, k, v, out = (_readable(x) for x in (grad, q, k, v, out))
    return backward(grad, q, k, v, out, lse, Walk(*walk), tuple(wanted))


@_attend_backward.register_fake
def _attend_backward_shapes(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    walk: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (q.new_empty(q.shape if each else 0) for each in wanted)
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.walk = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Backward needs nothing of the softmax but the log-sum-exp, which no gradient goes through."""
    wanted = ctx.needs_input_grad[:3]
    found = _attend_backward(grad, *ctx.saved_tensors, ctx.walk, wanted)
    return *(x if each else None for x, each in zip(found, wanted, strict=True)), None


differentiable_once(_attend, _attend_backward, _differentiate, _save)


def _readable(x_BNHD: Tensor) -> Tensor:
    """x with a contiguous head: the one layout rule of the kernels."""
    return x_BNHD if x_BNHD.stride(-1) == 1 else x_BNHD.contiguous()


def joins(one: Part, other: Part, into: Part | None = None) -> bool:
    """Whether `join` takes these (output, log-sum-exp) pairs: on a GPU, of one type of DTYPES, heads contiguous."""
    outs = [out for out, _ in (one, other, *([into] if into else []))]
    return (
        all(out.is_cuda and out.stride(-1) == 1 and out.dtype == one[0].dtype for out in outs)
        and one[0].dtype in DTYPES
        and refuses_device(one[0].device) is None
    )


def join(one: Part, other: Part, into: Part | None = None) -> Part:
    """`merge.join` in one launch: attention over two disjoint sets of keys, written to `into` where that is given."""
    from vdit_cli.attention.kernels import triton_merge

    return triton_merge.join(one, other, into)
