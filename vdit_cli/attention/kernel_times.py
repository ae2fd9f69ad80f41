"""How long kernels take on this machine: each is called with random operands, and the median of its calls counts.

Where "auto" is to choose on a GPU, what no table knows yet is measured once, when a mask is bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
from torch import Tensor

from vdit_cli.attention.bind import Case, bind, kernel_module, timed_kernels
from vdit_cli.attention.costs import GATHER, CostTable, remember
from vdit_cli.attention.order import from_order, to_order
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import token_order
from vdit_cli.tiles.plan import MaskPlan

WARM_UPS, REPEATS = 2, 5
"""Calls before a measurement, the first of which may compile, and calls of which the median counts."""
SECONDS_A_MASK = 2.0
"""The longest that all kernels together are measured for a mask that is bound, their first calls not counted."""


@dataclass
class KnownOrMeasured:
    """Times of this machine by which "auto" chooses: those of a table, and on a GPU others as masks are bound.

    All kernels of `bind.timed_kernels` are measured or none, at most SECONDS_A_MASK a mask; what is measured is kept
    for later runs. `say` is told in a line of a mask that can't be measured, once.
    """

    table: CostTable
    say: Callable[[str], None]
    left_out: set[tuple[TileMask, Case]] = field(default_factory=set)

    def timed(self, mask: TileMask, case: Case) -> dict[str, float]:
        """Seconds by kernel, measured now where that is worth it."""
        kernels = timed_kernels(case)
        is_open = (mask, case) not in self.left_out and not self.table.timed(mask, case).keys() >= set(kernels)
        if is_gpu(case.device) and len(kernels) > 1 and is_open:
            times = self.measured(mask, case, kernels)
            if times:
                found = CostTable(self.table.machine).with_times(mask, case, times)
                self.table = self.table.joined(found)
                remember(found, self.say)
            else:
                self.left_out.add((mask, case))
        return self.table.timed(mask, case)

    def measured(self, mask: TileMask, case: Case, kernels: tuple[str, ...]) -> dict[str, float]:
        """Seconds of all of these kernels, or none where the mask is too large to measure, which is said."""
        try:
            times = measure(mask, case, kernels, SECONDS_A_MASK)
            why = f"it would take more than {SECONDS_A_MASK:g} s"
        except torch.OutOfMemoryError:
            times, why = {}, "memory is too short"
        if not times:
            self.say(f"kernels of mask {mask.name} are not measured, {why}: the first of {', '.join(kernels)} is taken")
        return times

    def over_dense(self, mask: TileMask, case: Case, kernel: str) -> float | None:
        """As `CostTable.over_dense`."""
        return self.table.over_dense(mask, case, kernel)


def is_gpu(device: torch.device) -> bool:
    """Whether kernels are compared there before a run."""
    return device.type == "cuda"


def measure(mask: TileMask, case: Case, kernels: Iterable[str], within: float = math.inf) -> dict[str, float]:
    """Seconds a call of each of `kernels` that takes the case: the median of REPEATS calls, the GPU's own time there.

    Tokens stand as a plan of this mask alone would order them, so that nothing is gathered: that costs every kernel
    the same. Fewer repeats, one at least, where all would take more than `within` seconds together, first calls not
    counted; empty where even that is too much.
    """
    shape = (case.batch, case.grid.tokens, case.heads, case.head_dim)
    operands = [torch.randn(shape, dtype=case.dtype, device=case.device) for _ in range(3)]
    order = MaskPlan("", case.grid, (mask,)).frame_order
    taking = tuple(name for name in kernels if kernel_module(name).supports(case) is None)
    times: dict[str, float] = {}
    for name in taking:
        call = partial(_call, bind(mask, case, name, order), operands, case)
        repeats = _repeats(call, case.device, within / len(taking))
        if not repeats:
            return {}
        times[name] = median(_seconds(call, case.device, repeats))
    return times


def measure_gather(case: Case) -> dict[str, float]:
    """Seconds, as GATHER, that a mask takes more where a plan's order of frames is not its own, forward only.

    q, k and v are put in order and the output back, by slices of every second frame. Empty for a case with gradients
    and for so few frames that there is nothing to put in order.
    """
    order = token_order(TileMask.from_stride(case.grid.frames, 2), case.grid)
    if case.needs_grad or len(order) == 1:
        return {}
    x_BNHD = torch.randn(
        (case.batch, case.grid.tokens, case.heads, case.head_dim), dtype=case.dtype, device=case.device
    )

    def gather() -> None:
        """What an `Attend` of such a mask does beside its passes."""
        for _ in range(3):
            to_order(x_BNHD, order)
        from_order(x_BNHD, order)

    return {GATHER: median(_seconds(gather, case.device, _repeats(gather, case.device, math.inf)))}


def _call(attend: Callable[[Tensor, Tensor, Tensor], Tensor], operands: list[Tensor], case: Case) -> None:
    """One call, with its backward where the case needs gradients."""
    if not case.needs_grad:
        with torch.no_grad():
            attend(operands[0], operands[1], operands[2])
        return
    q, k, v = (x.detach().requires_grad_() for x in operands)
    out = attend(q, k, v)
    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))


def _repeats(call: Callable[[], None], device: torch.device, within: float) -> int:
    """After WARM_UPS calls, the first of which may compile, how many of REPEATS there is time for, by the last one."""
    for _ in range(WARM_UPS - 1):
        call()
    (seconds,) = _seconds(call, device, 1)
    return REPEATS if seconds * (REPEATS + 1) <= within else max(0, int(within / seconds) - 1)


def _seconds(call: Callable[[], None], device: torch.device, repeats: int) -> list[float]:
    """The time of each of so many calls, on a GPU its own."""
    if device.type != "cuda":
        taken = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return taken
    with torch.cuda.device(device):
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start_event, end_event in events:
            start_event.record()
            call()
            end_event.record()
        torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]
