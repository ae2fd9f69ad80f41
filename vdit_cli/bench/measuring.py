"""One group of rows: the contenders of a mask judged, then timed in turns with the fastest dense kernel.

Letters: B batch, N tokens, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from vdit_cli.attention.bind import Case
from vdit_cli.bench.clock import Times, Work, clock_for, time_in_turns
from vdit_cli.bench.contenders import Bound, Contender, first_line
from vdit_cli.bench.facts import today
from vdit_cli.bench.judge import SAMPLED, Verdict, judge_rows, judge_small, random_inputs
from vdit_cli.bench.presets import Shape
from vdit_cli.bench.rows import Row
from vdit_cli.tiles.mask import TileMask

RIVAL = "the fastest dense kernel"


@dataclass(frozen=True)
class Bench:
    """What all groups of a shape share: its case, the operands (q, k, v, output gradient), and how long to time."""

    shape: Shape
    case: Case
    operands: tuple[Tensor, Tensor, Tensor, Tensor]
    seconds: float
    least_repeats: int
    seed: int


@dataclass(frozen=True)
class Judged:
    """A contender after its trial: `work` to time if it passed, else a row that says why there is no number."""

    row: Row
    work: Work | None = None


def open_bench(shape: Shape, case: Case, seconds: float, least_repeats: int, seed: int) -> Bench:
    """The operands of a shape, random, on its device."""
    q, k, v, grad = random_inputs(case, seed)
    return Bench(shape, case, (q, k, v, grad), seconds, least_repeats, seed)


def blank_row(shape: Shape, mask: TileMask, kernel: str, is_dense: bool) -> Row:
    """A row with the shares of its mask and no number yet."""
    kept = mask.kept_pair_share(shape.grid)
    return Row(
        mask=mask.name,
        kernel=kernel,
        is_dense=is_dense,
        kept_share=kept,
        skipped_share=1 - kept,
        block_sparsity=1 - mask.kept_block_share(shape.grid),
        ideal=1 / kept,
    )


def measure_group(bench: Bench, contenders: Iterable[Contender], rival: Contender | None) -> list[Row]:
    """A row for each contender. `rival`, the fastest dense kernel, is timed in turns with tile kernels.

    Without it, dense kernels are compared with the fastest of themselves, and tile kernels have no speed-up.
    """
    judged = [try_contender(bench, contender) for contender in contenders]
    works = {each.row.kernel: each.work for each in judged if each.work is not None}
    if not works:
        return [each.row for each in judged]
    if rival is not None:
        bound = rival.ready(bench.case)
        if not isinstance(bound, str):
            works[RIVAL] = work_of(bench, bound)
    times = time_in_turns(works, clock_for(bench.case.device), bench.seconds, bench.least_repeats)
    dense_ms = times[RIVAL].median if RIVAL in times else None
    if all(each.row.is_dense for each in judged):
        dense_ms = min(each.median for each in times.values())
    return [
        each.row if each.work is None else timed_row(bench.shape, each.row, times[each.row.kernel], dense_ms)
        for each in judged
    ]


def try_contender(bench: Bench, contender: Contender) -> Judged:
    """Bind, judge on a small grid, run once at full size and judge again; whatever goes wrong is the row's note."""
    row = blank_row(bench.shape, contender.mask, contender.name, contender.is_dense)
    try:
        bound = contender.ready(bench.case)
        if isinstance(bound, str):
            return Judged(replace(row, note=bound))
        small = judge_small(contender, bench.case, bench.seed)
        if isinstance(small, str):
            return Judged(replace(row, note=f"not timed: it can't be compared on a small grid: {small}", failed=True))
        if not small.passed:
            return Judged(refused_row(row, small))
        verdict, memory = full_size(bench, bound, contender.mask)
        whole = small.joined(verdict)
        if not whole.passed:
            return Judged(refused_row(row, whole))
        work = work_of(bench, bound)
        work()  # with its backward pass: here, and not among the times, it may run out of memory
    except Exception as error:
        if is_out_of_memory(error):
            free_memory(bench.case.device)
            return Judged(replace(row, note="out of memory"))
        note = f"not timed: it raised {type(error).__name__}: {first_line(error)}"
        return Judged(replace(row, note=note, failed=True))
    row = replace(row, memory=memory, error=verdict.errors[SAMPLED], errors=whole.errors, allowed=whole.allowed)
    return Judged(row, work)


def refused_row(row: Row, verdict: Verdict) -> Row:
    """The row of a kernel that did not pass: what was worst, and no time."""
    what = verdict.worst
    note = f"not timed: {what} is off by {verdict.errors[what]:.1e}, at most {verdict.allowed[what]:.1e} passes"
    known = {name: value for name, value in verdict.errors.items() if isfinite(value)}
    return replace(row, errors=known, allowed=verdict.allowed, note=note, failed=True)


def full_size(bench: Bench, bound: Bound, mask: TileMask) -> tuple[Verdict, float | None]:
    """The verdict on one call at full size, and on CUDA what it allocated at most, in sizes of the output."""
    device = bench.case.device
    q, k, v, _ = bench.operands
    before = 0
    if device.type == "cuda":
        with torch.no_grad():
            bound.call(q, k, v)  # a kernel's first call may try block sizes or compile, which takes memory of its own
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with torch.no_grad():
        out = bound.call(q, k, v)
    memory = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        memory = (torch.cuda.max_memory_allocated(device) - before) / (out.numel() * out.element_size())
    return judge_rows(bound, out, [q, k, v], mask, bench.shape.grid), memory


def work_of(bench: Bench, bound: Bound) -> Work:
    """What is timed: a call, with its backward pass if the shape asks for it."""
    q, k, v, grad = bench.operands
    if not bench.shape.backward:

        def forward() -> object:
            with torch.no_grad():
                return bound.call(q, k, v)

        return forward
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(bound.call(*leaves), leaves, grad)


def timed_row(shape: Shape, row: Row, times: Times, dense_ms: float | None) -> Row:
    """The row with its times and what follows from them."""
    ms = times.median
    speedup = None if dense_ms is None else dense_ms / ms
    return replace(
        row,
        ms=ms,
        spread=times.spread,
        repeats=len(times.ms),
        tflops=shape.flops(row.kept_share) / ms / 1e9,
        dense_ms=dense_ms,
        speedup=speedup,
        efficiency=None if speedup is None else speedup * row.kept_share,
        measured=today(),
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory(device: torch.device) -> None:
    """On CUDA, give back what the allocator still holds."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def forget_compiled(device: torch.device) -> None:
    """On CUDA, let compiled attention begin anew: past a number of shapes torch.compile would run it uncompiled."""
    if device.type == "cuda":
        torch.compiler.reset()
