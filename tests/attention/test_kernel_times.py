"""Times measured here: of kernels, of putting tokens in order, and by `auto` when a mask is bound on a GPU."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vdit_cli.attention import bind as bind_module
from vdit_cli.attention import costs, kernel_times
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.costs import GATHER, CostTable, Machine
from vdit_cli.attention.kernel_times import REPEATS, KnownOrMeasured, measure, measure_gather
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

CASE = Case(VideoGrid(8, 2, 3, text_after=5), 2, 16, 1, torch.float32, torch.device("cpu"))
MASK, FULL = TileMask.parse("2:6", 8), TileMask.dense(8)
HERE = Machine("a GPU", "2.13", "3.9", "1.0")
TIMES = {"sdpa": 2e-3, "triton": 1e-3}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache folder of the test's own."""
    monkeypatch.setattr(costs, "user_cache_path", lambda *_, **__: tmp_path / "cache")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[TileMask, Case, tuple[str, ...]]]:
    """A stand-in for a GPU on which `triton` is faster than `sdpa`, and what was measured there."""
    takes = SimpleNamespace(supports=lambda case: None, run=lambda q, k, v, passes: v)
    kernels = {"sdpa": takes, "triton": takes, "flex": takes}
    asked = []

    def measured(mask: TileMask, case: Case, kernels: tuple[str, ...], within: float) -> dict[str, float]:
        asked.append((mask, case, kernels))
        return TIMES

    monkeypatch.setattr(bind_module, "KERNELS", tuple(kernels))
    monkeypatch.setattr(bind_module, "kernel_module", kernels.__getitem__)
    monkeypatch.setattr(kernel_times, "is_gpu", lambda device: True)
    monkeypatch.setattr(kernel_times, "measure", measured)
    return asked


@pytest.mark.parametrize("needs_grad", [False, True])
def test_kernels_that_take_the_case_are_timed(needs_grad: bool) -> None:
    """Seconds above zero; one that refuses has no row, and the table then answers."""
    case = replace(CASE, needs_grad=needs_grad)
    times = measure(MASK, case, ("sdpa", "fa4"))
    assert times.keys() == {"sdpa"} and 0 < times["sdpa"] < 60
    table = CostTable(Machine.of(case.device)).with_times(MASK, case, times)
    assert bind(MASK, case, costs=table).kernel == "sdpa"


def test_the_time_of_putting_tokens_in_order_is_no_kernels() -> None:
    """It is measured where there is an order to make, and the fastest kernel of the full mask stays what it was."""
    found = measure_gather(CASE)
    assert found.keys() == {GATHER} and 0 < found[GATHER] < 60
    table = CostTable(HERE).with_times(FULL, CASE, {"sdpa": 3e-3}).with_times(FULL, CASE, {GATHER: 1e-9})
    assert table.timed(FULL, CASE) == {"sdpa": 3e-3} and table.seconds(FULL, CASE) == 3e-3
    assert measure_gather(replace(CASE, needs_grad=True)) == {}
    assert measure_gather(replace(CASE, grid=VideoGrid(2, 2, 3))) == {}


@pytest.mark.parametrize(("seconds", "calls"), [(0.01, 2 + REPEATS), (0.25, 2 + 3), (0.5, 2 + 1), (0.6, 2), (3.0, 2)])
def test_a_kernel_is_called_as_often_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch, seconds: float, calls: int
) -> None:
    """Within one second: a first call that may compile, one that tells how long, and repeats; else no time at all."""
    made = []

    def timed(call: object, device: torch.device, repeats: int) -> list[float]:
        made.extend([seconds] * repeats)
        return [seconds] * repeats

    monkeypatch.setattr(kernel_times, "_seconds", timed)
    found = measure(MASK, CASE, ("sdpa", "fa4"), within=1.0)
    assert found == ({"sdpa": seconds} if calls > 2 else {})
    assert len(made) == calls - 1, "the first call is not timed"


def test_a_mask_is_measured_once_where_it_is_bound(gpu: list) -> None:
    """By all kernels but those that compile a mask for long; kept for the next run, and for this case alone."""
    said: list[str] = []
    here = KnownOrMeasured(CostTable(HERE), said.append)
    attend = bind(MASK, CASE, costs=here)
    assert (attend.kernel, attend.times) == ("triton", (("triton", 1e-3), ("sdpa", 2e-3)))
    assert bind(MASK, CASE, costs=here) == attend and gpu == [(MASK, CASE, ("sdpa", "triton"))]
    later = KnownOrMeasured(CostTable.read(HERE, said.append), said.append)
    assert bind(MASK, CASE, costs=later).kernel == "triton" and len(gpu) == 1
    bind(FULL, CASE, costs=later)
    bind(MASK, replace(CASE, batch=2), costs=later)
    assert [each[:2] for each in gpu[1:]] == [(FULL, CASE), (MASK, replace(CASE, batch=2))] and said == []


def test_a_table_with_one_kernel_is_made_whole(gpu: list) -> None:
    """After a measurement of `flex` alone, "auto" is not flex; where all were measured, it may be."""
    one = CostTable(HERE).with_times(MASK, CASE, {"flex": 1e-6})
    assert bind(MASK, CASE, costs=one).kernel == "sdpa", "a table by itself measures nothing"
    assert bind(MASK, CASE, costs=KnownOrMeasured(one, print)).kernel == "flex" and len(gpu) == 1


def test_nothing_is_measured_without_a_choice(gpu: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named kernel, one that is alone, a CPU."""
    here = KnownOrMeasured(CostTable(HERE), print)
    assert bind(MASK, CASE, "sdpa", costs=here).kernel == "sdpa"
    monkeypatch.setattr(bind_module, "KERNELS", ("sdpa", "flex"))
    assert bind(MASK, CASE, costs=here).times == ()
    monkeypatch.setattr(bind_module, "KERNELS", ("sdpa", "triton"))
    monkeypatch.setattr(kernel_times, "is_gpu", lambda device: device.type == "cuda")
    assert bind(MASK, CASE, costs=here).kernel == "sdpa" and gpu == []


@pytest.mark.parametrize(("fault", "why"), [(None, "it would take more than 2 s"), (torch.OutOfMemoryError, "memory")])
@pytest.mark.usefixtures("gpu")
def test_what_can_not_be_measured_is_told_once(
    monkeypatch: pytest.MonkeyPatch, fault: type[Exception] | None, why: str
) -> None:
    """The fixed order then."""

    def fails(*_: object) -> dict[str, float]:
        if fault:
            raise fault
        return {}

    monkeypatch.setattr(kernel_times, "measure", fails)
    said: list[str] = []
    here = KnownOrMeasured(CostTable(HERE), said.append)
    assert [bind(MASK, CASE, costs=here).kernel for _ in range(2)] == ["sdpa", "sdpa"]
    assert len(said) == 1 and "2:6" in said[0] and why in said[0] and "sdpa" in said[0]
