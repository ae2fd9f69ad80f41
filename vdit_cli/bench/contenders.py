"""What is timed: every way to dense attention on this machine, and every kernel of tile attention under a mask.

Letters: B batch, N tokens, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.order import Order, from_order, to_order
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v to output, each (B, N, H, D)."""

PROBE_TOKENS = 128


@dataclass(frozen=True)
class Bound:
    """A contender ready for one case: `call` takes tokens in `order`, the order in which a model would hold them.

    A plan permutes tokens once at the model's entry and back at its exit, so the permutation is no part of `call`.
    """

    call: Call
    order: Order

    def in_grid_order(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        """The same attention for tokens in the order of the grid."""
        return from_order(self.call(*(to_order(x, self.order) for x in (q_BNHD, k_BNHD, v_BNHD))), self.order)


@dataclass(frozen=True)
class Contender:
    """A row's kernel: `name`, `mask`, and `ready(case)`, which gives a `Bound` or the reason why it can't."""

    name: str
    mask: TileMask
    ready: Callable[[Case], Bound | str]
    is_dense: bool = False


@dataclass(frozen=True)
class DenseWay:
    """One way to compute dense attention on a kind of device; `load` gives the call, or raises where it is not here."""

    name: str
    device: str
    load: Callable[[], Call]


def dense_contenders(frames: int, device: torch.device) -> list[Contender]:
    """All dense ways of a device, as contenders under the full mask."""
    full = TileMask.dense(frames)
    ways = [way for way in DENSE_WAYS if way.device == device.type]
    return [Contender(way.name, full, partial(ready_dense, way), is_dense=True) for way in ways]


def ready_dense(way: DenseWay, case: Case) -> Bound | str:
    """The way bound to a case, after a call on few tokens of that type and width; or why it does not answer."""
    try:
        call = way.load()
        few = replace(case, grid=VideoGrid(1, 1, PROBE_TOKENS))
        q = torch.zeros(few.batch, PROBE_TOKENS, few.heads, few.head_dim, dtype=few.dtype, device=few.device)
        leaves = [q.clone().requires_grad_(few.needs_grad) for _ in range(3)]
        out = call(*leaves)
        if few.needs_grad:
            out.sum().backward()
    except ImportError as error:
        return f"not installed ({error})"
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        return f"refuses {case.dtype}, width {case.head_dim}: {first_line(error)}"
    return Bound(call, (range(case.grid.tokens),))


def tile_contender(kernel: str, mask: TileMask) -> Contender:
    """A kernel of tile attention under `mask`."""
    return Contender(kernel, mask, partial(ready_kernel, kernel, mask))


def ready_kernel(kernel: str, mask: TileMask, case: Case) -> Bound | str:
    """The kernel bound to mask and case, or the reason that it gives for not taking them."""
    if kernel == "triton" and case.device.type == "cpu":
        return "on the CPU it runs only in Triton's interpreter, whose times say nothing"
    try:
        attend = bind(mask, case, kernel)
    except ImportError as error:
        return f"not installed ({error})"
    refused = dict(attend.refused)
    if attend.kernel != kernel:
        return refused.get(kernel, f"bind took {attend.kernel} instead")
    run, passes = attend.run, attend.passes
    return Bound(lambda q, k, v: run(q, k, v, passes), attend.order)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sdpa() -> Call:
    """SDPA as torch chooses it."""

    def call(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return call


def _forced(backend: SDPBackend) -> Call:
    """SDPA through one of torch's own kernels and no other."""
    plain = _sdpa()

    def call(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return plain(q_BNHD, k_BNHD, v_BNHD)

    return call


@cache
def _flex() -> Call:
    """FlexAttention without a mask, compiled for each shape."""
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def call(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q_BNHD, k_BNHD, v_BNHD))
        return compiled(q, k, v).transpose(1, 2)

    return call


def _fa4() -> Call:
    """flash-attn-4, which returns its log-sum-exp beside the output in some versions."""
    from flash_attn.cute import flash_attn_func

    def call(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        found = flash_attn_func(q_BNHD, k_BNHD, v_BNHD)
        return found[0] if isinstance(found, tuple) else found

    return call


DENSE_WAYS: tuple[DenseWay, ...] = (
    DenseWay("sdpa dense", "cpu", _sdpa),
    DenseWay("cudnn dense", "cuda", lambda: _forced(SDPBackend.CUDNN_ATTENTION)),
    DenseWay("flash dense", "cuda", lambda: _forced(SDPBackend.FLASH_ATTENTION)),
    DenseWay("efficient dense", "cuda", lambda: _forced(SDPBackend.EFFICIENT_ATTENTION)),
    DenseWay("flex dense", "cuda", _flex),
    DenseWay("fa4 dense", "cuda", _fa4),
)
"""Every dense way, by kind of device. The ways of CUDA were written without one at hand."""
