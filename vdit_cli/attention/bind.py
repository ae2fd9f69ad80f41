"""Bind a tile mask to a kernel once, before the loop: the kernel is chosen, and why others were not is kept.

Letters: B batch, N tokens, H heads, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from operator import itemgetter
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from vdit_cli.attention.derivatives import refuse_forward_mode
from vdit_cli.attention.order import Order, from_order, to_order
from vdit_cli.errors import ENVIRONMENT, EvditError, unknown_name
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import Pass, passes, token_order

KERNELS: tuple[str, ...] = ("fa4", "sdpa", "triton", "flex")
"""Kernels in order of preference; each is a file of its name in attention/kernels/ with NAME, supports and run."""

COMPILED_A_MASK = ("flex",)
"""Kernels that compile anew for each mask, for tens of seconds: no run waits for that to compare them with others."""
MOST_BOUND = 256
"""Masks for cases that `tile_attention` keeps bound."""

Run = Callable[[Tensor, Tensor, Tensor, tuple[Pass, ...]], Tensor]


@dataclass(frozen=True)
class Case:
    """What a kernel is asked: the shape and type of an attention call, and whether gradients are wanted.

    `batch` tells measured times apart; what a kernel `supports` never hangs on it.
    """

    grid: VideoGrid
    heads: int
    head_dim: int
    batch: int
    dtype: torch.dtype
    device: torch.device
    needs_grad: bool = False


class Times(Protocol):
    """Seconds of kernels by which "auto" chooses: a table's, or others that are measured when they are asked for."""

    def timed(self, mask: TileMask, case: Case) -> Mapping[str, float]:
        """Seconds by kernel of what is known."""

    def over_dense(self, mask: TileMask, case: Case, kernel: str) -> float | None:
        """Time of `kernel` over that of the full mask where that is above 1; None where it is not, or not known."""


@dataclass(frozen=True)
class Attend:
    """A mask bound to a kernel, plain data: call it with q, k, v of (B, N, H, D), tokens in the order of the grid.

    `refused` holds (kernel, reason) for each kernel that was asked for or preferred and could not take the case.
    `frame_order` names the frame that each place of the grid holds where that is not its own (None: frame after
    frame). `dense_is_faster` is the measured time of this attention over that of the full mask, where it is above 1.
    `times` has the seconds of each kernel among which this one was chosen.
    """

    mask: TileMask
    case: Case
    kernel: str
    refused: tuple[tuple[str, str], ...]
    passes: tuple[Pass, ...] = field(repr=False)
    order: Order = field(repr=False)
    run: Run = field(repr=False, compare=False)
    frame_order: tuple[int, ...] | None = None
    dense_is_faster: float | None = None
    times: tuple[tuple[str, float], ...] = ()

    def __call__(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        """Softmax over the kept pairs, scores times D ** -0.5: (B, N, H, D). Has first derivatives, by backward.

        B may be any. Under autocast it computes in autocast's type, as torch's own attention does. Raises ValueError
        for another type, length, number of heads or width than those of the case, and RuntimeError for second
        derivatives and forward mode.
        """
        q_BNHD, k_BNHD, v_BNHD = (x.to(computed_in(x)) for x in (q_BNHD, k_BNHD, v_BNHD))
        if not q_BNHD.shape == k_BNHD.shape == v_BNHD.shape or not q_BNHD.dtype == k_BNHD.dtype == v_BNHD.dtype:
            raise ValueError(f"q, k, v differ: {[(tuple(x.shape), x.dtype) for x in (q_BNHD, k_BNHD, v_BNHD)]}")
        if q_BNHD.shape[1] != self.case.grid.tokens:
            raise ValueError(f"{q_BNHD.shape[1]} tokens: the mask was bound for {self.case.grid}")
        if q_BNHD.dtype != self.case.dtype and torch.is_autocast_enabled(q_BNHD.device.type):
            return tile_attention(q_BNHD, k_BNHD, v_BNHD, self.mask, self.case.grid, self.kernel, self.frame_order)
        bound = (self.case.dtype, self.case.heads, self.case.head_dim)
        if (q_BNHD.dtype, *q_BNHD.shape[2:]) != bound:
            asked = f"{q_BNHD.dtype} and heads x width {' x '.join(map(str, q_BNHD.shape[2:]))}"
            raise ValueError(f"{asked}: the mask was bound for {bound[0]} and {bound[1]} x {bound[2]}")
        if self.kernel != "sdpa" or len(self.passes) > 1:  # else it is torch's own SDPA, with what derivatives that has
            refuse_forward_mode(q_BNHD, k_BNHD, v_BNHD)
        # Gathered operands have no name here: without gradients they are gone before the output is put back.
        order = self.order
        out = self.run(to_order(q_BNHD, order), to_order(k_BNHD, order), to_order(v_BNHD, order), self.passes)
        return from_order(out, order)

    def receipt(self) -> dict[str, Any]:
        """What runs in this site, as JSON: kernel, mask, shares and numbers of tiles, kernels refused and why.

        `dense_is_faster` and `milliseconds` by kernel are among it where they were measured.
        """
        times = {"milliseconds": {name: round(1e3 * seconds, 4) for name, seconds in self.times}} if self.times else {}
        slower = {} if self.dense_is_faster is None else {"dense_is_faster": round(self.dense_is_faster, 4)}
        return {
            "kernel": self.kernel,
            "mask": self.mask.name,
            "global_frames": list(self.mask.global_frames),
            "kept_share": self.mask.kept_share,
            "skipped_share": self.mask.skipped_share,
            "tiles_computed": self.mask.kept_tiles,
            "tiles_skipped": self.mask.frames**2 - self.mask.kept_tiles,
            "refused": dict(self.refused),
            **slower,
            **times,
        }


def bind(
    mask: TileMask,
    case: Case,
    kernel: str = "auto",
    frame_order: tuple[int, ...] | None = None,
    costs: Times | None = None,
) -> Attend:
    """Choose the kernel that computes `mask` exactly for `case`: `kernel`, or the first of KERNELS that takes it.

    With `costs`, "auto" tries the kernels from the fastest on, if all of `timed_kernels` are known there: where some
    are not, it can't be told which is the fastest. A kernel asked for that can't take the case is answered by the next
    one, and the refusal is kept. `frame_order` is that of the tokens which the Attend will be called with
    (`MaskPlan.frame_order`; None: frame after frame). Raises EvditError for an unknown name (exit 2) and where no
    kernel takes the case (exit 3).
    """
    if kernel not in ("auto", *KERNELS):
        raise unknown_name("kernel", kernel, ("auto", *KERNELS), where="--kernel")
    times = {} if costs is None or kernel != "auto" else costs.timed(mask, case)
    if not times.keys() >= set(timed_kernels(case)):
        times = {}
    names = sorted(KERNELS, key=lambda known: times.get(known, math.inf))
    refused: list[tuple[str, str]] = []
    for name in sorted(names, key=lambda known: known != kernel):
        module = kernel_module(name)
        reason = module.supports(case)
        if reason is None:
            order = (range(case.grid.tokens),) if mask.is_dense else token_order(mask, case.grid, frame_order)
            slower = None if costs is None else costs.over_dense(mask, case, name)
            found = passes(mask, case.grid)
            known = tuple(sorted(times.items(), key=itemgetter(1))) if len(times) > 1 else ()
            return Attend(mask, case, name, tuple(refused), found, order, module.run, frame_order, slower, known)
        refused.append((name, reason))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
    raise EvditError(f"no kernel takes this attention ({reasons})", where="--kernel", exit_code=ENVIRONMENT)


def timed_kernels(case: Case) -> tuple[str, ...]:
    """The kernels that take the case among which "auto" chooses by their times, all but COMPILED_A_MASK."""
    return tuple(name for name in KERNELS if name not in COMPILED_A_MASK and kernel_module(name).supports(case) is None)


def kernel_module(name: str) -> ModuleType:
    """The module of the kernel called `name` in KERNELS."""
    return import_module(f"vdit_cli.attention.kernels.{name}")


def computed_in(x: Tensor) -> torch.dtype:
    """The type that torch's own attention takes x in: autocast's where that is on, but for float64; else its own."""
    kind = x.device.type
    is_cast = x.dtype != torch.float64 and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_cast else x.dtype


def tile_attention(
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    mask: TileMask,
    grid: VideoGrid,
    kernel: str = "auto",
    frame_order: tuple[int, ...] | None = None,
) -> Tensor:
    """Attention of (B, N, H, D) over the pairs that `mask` keeps on `grid`: `bind`, once for a case, and a call."""
    sizes = (grid.frames, grid.rows, grid.cols, grid.text_before, grid.text_after)
    return _bind_and_call(q_BNHD, k_BNHD, v_BNHD, mask.global_frames, sizes, kernel, frame_order)


@torch.compiler.allow_in_graph
def _bind_and_call(
    q_BNHD: Tensor,
    k_BNHD: Tensor,
    v_BNHD: Tensor,
    global_frames: tuple[int, ...],
    sizes: tuple[int, ...],
    kernel: str,
    frame_order: tuple[int, ...] | None,
) -> Tensor:
    """`tile_attention` in numbers and names, as a compiled graph holds it: how kernels are found can't be traced."""
    grid = VideoGrid(*sizes)
    heads, head_dim = map(int, q_BNHD.shape[2:])
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q_BNHD, k_BNHD, v_BNHD))
    case = Case(grid, heads, head_dim, 1, computed_in(q_BNHD), q_BNHD.device, needs_grad)
    return _bound(TileMask(grid.frames, global_frames), case, kernel, frame_order)(q_BNHD, k_BNHD, v_BNHD)


@lru_cache(maxsize=MOST_BOUND)
def _bound(mask: TileMask, case: Case, kernel: str, frame_order: tuple[int, ...] | None) -> Attend:
    """`bind`, whose answer is kept; the batch is none of it."""
    return bind(mask, case, kernel, frame_order)
