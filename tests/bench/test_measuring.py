"""A group of rows: who is timed, who is not and why, and what follows from the times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.closeness import assert_close, assert_within
from vdit_cli.attention.bind import Case
from vdit_cli.bench import measuring
from vdit_cli.bench.clock import Times
from vdit_cli.bench.contenders import Bound, Contender, dense_contenders, tile_contender
from vdit_cli.bench.measuring import Bench, measure_group, open_bench
from vdit_cli.bench.presets import Shape
from vdit_cli.bench.rows import Row
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

CPU = torch.device("cpu")
GRID = VideoGrid(4, 3, 3, text_before=2)
MASK = TileMask(4, (0,))


def bench(backward: bool = False) -> Bench:
    """38 tokens, two heads of 16, timed for no longer than it takes to do so once."""
    shape = Shape("tiny", GRID, 2, 16, 1, (MASK,), backward)
    return open_bench(shape, Case(GRID, 2, 16, 1, torch.float32, CPU, backward), 0, 1, 0)


def stand_in(name: str, call: Callable[[Tensor, Tensor, Tensor], Tensor], mask: TileMask = MASK) -> Contender:
    """A contender that calls `call` on every case."""
    return Contender(name, mask, lambda case: Bound(call, (range(case.grid.tokens),)))


def by_name(rows: list[Row]) -> dict[str, Row]:
    """Rows by kernel."""
    return {row.kernel: row for row in rows}


@pytest.mark.numerical
@pytest.mark.parametrize("backward", [False, True])
def test_numbers_follow_from_the_times(backward: bool, monkeypatch: pytest.MonkeyPatch):
    """Speed-up over the rival of the same group, efficiency, TFLOP/s on kept pairs: by hand."""
    monkeypatch.setattr(
        measuring,
        "time_in_turns",
        lambda works, *others: {name: Times((4.0,) if name == measuring.RIVAL else (2.0,)) for name in works},
    )
    made = bench(backward)
    (rival,) = dense_contenders(4, CPU)
    mean = stand_in("mean", lambda q, k, v: (q + k + v) / 3)
    row, wrong = measure_group(made, [tile_contender("sdpa", MASK), mean], rival)
    tokens, everyone = 38, 2 + 9
    kept = (everyone * tokens + 27 * (everyone + 9)) / tokens**2
    assert_close(row.kept_share, kept)
    assert_close(row.ideal, 1 / kept)
    assert (row.ms, row.dense_ms, row.speedup, row.repeats) == (2.0, 4.0, 2.0, 1)
    assert_close(row.efficiency, 2 * kept)
    flops = 4 * 2 * 16 * kept * tokens**2 * (3.5 if backward else 1)
    assert_close(row.tflops, flops / 2e-3 / 1e12)
    assert_within(row.error, 2e-5, planted=wrong.errors)
    assert not row.failed and row.note is None


def test_dense_kernels_are_compared_with_their_fastest():
    """The fastest of the group has speed-up 1; without a rival a tile kernel has none."""
    (dense,) = dense_contenders(4, CPU)
    rows = measure_group(bench(), [dense], None)
    assert [(row.is_dense, row.speedup, row.ideal) for row in rows] == [(True, 1.0, 1.0)]
    (alone,) = measure_group(bench(), [tile_contender("sdpa", MASK)], None)
    assert alone.ms > 0 and alone.speedup is None and alone.efficiency is None


def test_a_kernel_that_is_wrong_gets_no_number():
    """It is told what was worst; the one beside it is timed."""
    wrong = stand_in("wrong", lambda q, k, v: (q + k + v) / 3)
    rows = by_name(measure_group(bench(), [wrong, tile_contender("sdpa", MASK)], None))
    assert rows["wrong"].failed and rows["wrong"].ms is None and rows["wrong"].note.startswith("not timed: ")
    assert rows["wrong"].errors and rows["sdpa"].ms > 0


def test_a_kernel_that_is_wrong_only_at_full_size_gets_no_number():
    """Right at the size of the small grid, wrong beyond it."""
    (dense,) = dense_contenders(4, CPU)
    full = TileMask.dense(4)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bound = dense.ready(bench().case)
        out = bound.call(q, k, v)
        return out.roll(1, 1) if out.shape[0] == 1 else out  # the small grid is judged in a batch of two

    (row,) = measure_group(bench(), [stand_in("rolled", call, full)], None)
    assert row.failed and row.ms is None and "sampled rows" in row.note


@pytest.mark.parametrize(
    ("error", "note", "failed"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory", False),
        (MemoryError(), "out of memory", False),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory", False),
        (RuntimeError("illegal\nand more"), "not timed: it raised RuntimeError: illegal", True),
        (KeyError("x"), "not timed: it raised KeyError: 'x'", True),
    ],
)
def test_a_kernel_that_raises_is_a_row(error: Exception, note: str, failed: bool):
    """Memory that is short is a fact of the row; anything else also fails the command at its end."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise error

    rows = by_name(measure_group(bench(), [stand_in("raises", call), tile_contender("sdpa", MASK)], None))
    assert (rows["raises"].note, rows["raises"].failed, rows["raises"].ms) == (note, failed, None)
    assert rows["sdpa"].ms > 0


def test_a_kernel_that_refuses_says_why():
    """Its own reason, and nothing failed."""
    (row,) = measure_group(bench(), [Contender("picky", MASK, lambda case: "too small for me")], None)
    assert (row.note, row.failed, row.ms) == ("too small for me", False, None)
    whole = replace(bench().case, dtype=torch.int8)
    assert "torch.int8" in dense_contenders(4, CPU)[0].ready(whole)


def test_the_interpreter_is_not_timed():
    """Triton on the CPU, whatever the environment says: minutes, and no measure of anything."""
    assert "interpreter" in tile_contender("triton", MASK).ready(bench().case)


def test_kernels_that_bind_answers_by_another_are_refused(monkeypatch: pytest.MonkeyPatch):
    """A row never carries the time of another kernel than its own."""
    from types import SimpleNamespace

    from vdit_cli.attention import bind as bind_module

    kernels = {
        "first": SimpleNamespace(NAME="first", supports=lambda case: "no GPU here", run=None),
        "second": SimpleNamespace(NAME="second", supports=lambda case: None, run=lambda q, k, v, passes: v),
    }
    monkeypatch.setattr(bind_module, "KERNELS", tuple(kernels))
    monkeypatch.setattr(bind_module, "kernel_module", kernels.__getitem__)
    assert tile_contender("first", MASK).ready(bench().case) == "no GPU here"
    assert isinstance(tile_contender("second", MASK).ready(bench().case), Bound)
