"""Dense attention that also returns its log-sum-exp, forward and backward, by torch's own operators.

Letters: B batch, H heads, Q queries, K keys, D head width. `lse_BHQ` is the logarithm of the sum of exponentials of a
query's scores, float32 (float64 for float64 inputs): with it, attention over two sets of keys can be joined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.backends import cuda

aten = torch.ops.aten
HALVES = (torch.float16, torch.bfloat16)
CHUNK_SCORES = 1 << 22
"""Most scores that the chunked call holds at a time."""


Kept = tuple[Tensor, ...]
"""What a call's backward wants back from its forward: states of random generators, which are unused without dropout."""


@dataclass(frozen=True)
class DenseCall:
    """One way to compute dense attention over (B, H, Q, D), (B, H, K, D), (B, H, K, D).

    `takes(q, k, v)` says whether it can, `forward(q, k, v, scale)` gives (out_BHQD, lse_BHQ, kept), and
    `backward(grad_BHQD, q, k, v, out_BHQD, lse_BHQ, scale, kept)` gives (dq, dk, dv); `kept` is what the operator's
    backward wants back from its forward. Backward is exact for a *part* of the keys, too, when out and lse are those
    of all keys. `keeps` says whether there is anything in `kept`: as many tensors in each call.
    """

    name: str
    takes: Callable[[Tensor, Tensor, Tensor], bool]
    forward: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Kept]]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, Kept], tuple[Tensor, Tensor, Tensor]]
    keeps: bool = False


def named(name: str) -> DenseCall:
    """The call called `name`, be it one that `pick` may take or FA4, which is taken only where it is asked for."""
    return next(call for call in (*DENSE_CALLS, FA4) if call.name == name)


def pick(operands: Sequence[tuple[Tensor, Tensor, Tensor]]) -> DenseCall:
    """The first of DENSE_CALLS that takes each (q, k, v) of (B, H, Q or K, D); the last one takes everything."""
    return next(call for call in DENSE_CALLS if all(call.takes(*each) for each in operands))


def _cpu_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.device.type == "cpu" and q.dtype in (*HALVES, torch.float32, torch.float64)


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Kept]:
    return *aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale), ()


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, False, scale=scale)


def _params(q: Tensor, k: Tensor, v: Tensor) -> cuda.SDPAParams:
    return cuda.SDPAParams(q, k, v, None, 0.0, False, False)


def _cudnn_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.is_cuda and q.dtype in HALVES and cuda.can_use_cudnn_attention(_params(q, k, v))


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Kept]:
    found = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False, scale=scale)
    out, lse, seed, offset = found[0], found[1], found[6], found[7]
    # Some versions have lse as (B, H, Q, 1): a tensor of no elements keeps the number of dimensions.
    return out, lse.view(out.shape[:-1]), (lse.new_empty((0,) * lse.dim()), seed, offset)


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    like, seed, offset = kept
    lse = lse.contiguous().view(*lse.shape, *(1,) * (like.dim() - 3))
    sizes = (None, None, q.shape[2], k.shape[2])
    return aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, lse, seed, offset, None, *sizes, 0.0, False, scale=scale
    )


def _flash_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.is_cuda and q.dtype in HALVES and cuda.can_use_flash_attention(_params(q, k, v))


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Kept]:
    found = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)
    return found[0], found[1], found[6:8]


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (None, None, q.shape[2], k.shape[2])
    return aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse.contiguous(), *sizes, 0.0, False, *kept, scale=scale
    )


def _efficient_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.is_cuda and q.dtype in (*HALVES, torch.float32) and cuda.can_use_efficient_attention(_params(q, k, v))


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Kept]:
    out, lse, *kept = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, False, scale=scale)
    return out, lse[:, :, : q.shape[2]], tuple(kept)  # the operator pads the queries of its lse to a multiple of 32


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    # Its kernel wants whole rows of 32; a cut of a longer lse may be neither padded nor aligned.
    padded = torch.nn.functional.pad(lse, (0, -lse.shape[2] % 32), value=float("inf")).contiguous()
    dq, dk, dv, _ = aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, padded, *kept, 0.0, [True, True, True, False], False, scale=scale
    )
    return dq, dk, dv


def _chunked_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return True


def _chunked_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Kept]:
    """Matrix products over as many queries at a time as CHUNK_SCORES allows; half types are computed in float32."""
    q32, k32, v32 = (_at_least_float32(x) for x in (q, k, v))
    out, lse = torch.empty_like(q32), q32.new_empty(q.shape[:-1])
    for rows in _chunks(q, k):
        scores = (q32[:, :, rows] * scale) @ k32.transpose(-1, -2)
        lse[:, :, rows] = scores.logsumexp(-1)
        out[:, :, rows] = scores.sub_(lse[:, :, rows, None]).exp_() @ v32
    return out.to(q.dtype), lse, ()


def _chunked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    grad32, q32, k32, v32 = (_at_least_float32(x) for x in (grad, q, k, v))
    dq, dk, dv = torch.empty_like(q32), torch.zeros_like(k32), torch.zeros_like(v32)
    for rows in _chunks(q, k):
        share = ((q32[:, :, rows] * scale) @ k32.transpose(-1, -2)).sub_(lse[:, :, rows, None]).exp_()
        dv += share.transpose(-1, -2) @ grad32[:, :, rows]
        mean = (grad32[:, :, rows] * out[:, :, rows]).sum(-1, keepdim=True)
        d_scores = share.mul_((grad32[:, :, rows] @ v32.transpose(-1, -2)).sub_(mean)).mul_(scale)
        dq[:, :, rows] = d_scores @ k32
        dk += d_scores.transpose(-1, -2) @ q32[:, :, rows]
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def _chunks(q: Tensor, k: Tensor) -> list[slice]:
    """Slices of the queries that hold about CHUNK_SCORES scores each."""
    rows = max(1, CHUNK_SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    return [slice(start, start + rows) for start in range(0, q.shape[2], rows)]


def _fa4_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return q.is_cuda and q.dtype in HALVES and q.shape[-1] % 8 == 0


def _fa4_forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Kept]:
    from flash_attn.cute.interface import flash_attn_func

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out, lse = flash_attn_func(q, k, v, softmax_scale=scale, return_lse=True)
    return out.transpose(1, 2), lse, ()


def _fa4_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    q, k, v, out, grad = (x.transpose(1, 2) for x in (q, k, v, out, grad))
    dq, dk, dv = _flash_attn_bwd(q, k, v, out, grad, lse.contiguous(), softmax_scale=scale)
    return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)


FA4 = DenseCall("fa4", _fa4_takes, _fa4_forward, _fa4_backward)
"""flash-attn-4, an extra: imported when first called. Names and shapes are those of version 4.0.0b36."""

DENSE_CALLS = (
    DenseCall("cpu flash", _cpu_takes, _cpu_forward, _cpu_backward),
    DenseCall("cudnn", _cudnn_takes, _cudnn_forward, _cudnn_backward, keeps=True),
    DenseCall("flash", _flash_takes, _flash_forward, _flash_backward, keeps=True),
    DenseCall("efficient", _efficient_takes, _efficient_forward, _efficient_backward, keeps=True),
    DenseCall("chunked", _chunked_takes, _chunked_forward, _chunked_backward),
)
"""Dense calls in order of preference."""
