"""Times: taken in turns, warm, enough of them, and summed up by order statistics."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.bench import clock as clock_module
from vdit_cli.bench.clock import MOST_ROUNDS, WARM_UPS, CpuClock, CudaClock, Times, clock_for, time_in_turns


class Counted:
    """A clock that calls everything and tells milliseconds of its own."""

    def __init__(self) -> None:
        self.rounds: list[list[str]] = []

    def round(self, calls: dict) -> dict[str, float]:
        """One round, its order noted; a takes as many ms as rounds were run, b ten."""
        self.rounds.append(list(calls))
        for work in calls.values():
            work()
        return {"a": float(len(self.rounds)), "b": 10.0}


def test_calls_take_turns_after_warming_up():
    """Each round has every call once and begins with another; warm-ups are not among the times."""
    clock, called = Counted(), []
    times = time_in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, clock, 0, 4)
    assert clock.rounds[WARM_UPS:] == [["a", "b"], ["b", "a"], ["a", "b"], ["b", "a"]]
    assert called.count("a") == called.count("b") == WARM_UPS + 4
    assert times == {"a": Times((3.0, 4.0, 5.0, 6.0)), "b": Times((10.0,) * 4)}


class Worked:
    """A stand-in for `time` that goes on by what the calls work."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def work(self, seconds: float) -> None:
        """Let so much time pass."""
        self.now += seconds


def test_the_time_budget_is_used_and_bounded(monkeypatch: pytest.MonkeyPatch):
    """A call is repeated until the time is over, at least as often as asked, and never without end."""
    time = Worked(monkeypatch)
    assert len(time_in_turns({"a": lambda: time.work(0.25)}, CpuClock(), 1, 1)["a"].ms) == 4
    assert len(time_in_turns({"a": lambda: time.work(0.25)}, CpuClock(), 1, 7)["a"].ms) == 7
    assert len(time_in_turns({"a": lambda: None}, CpuClock(), 1, 1)["a"].ms) == MOST_ROUNDS


@pytest.mark.numerical
def test_median_and_spread():
    """The middle half over the middle; one slow repeat moves neither much; one repeat has no spread."""
    times = Times((1.0, 2.0, 3.0, 4.0, 1000.0))
    assert_close((times.median, times.spread), (3.0, 2 / 3))
    assert Times((5.0,)).spread == 0


def test_the_cpu_clock_counts_milliseconds(monkeypatch: pytest.MonkeyPatch):
    """Each call its own, in the unit told."""
    time = Worked(monkeypatch)
    found = CpuClock().round({"none": lambda: None, "some": lambda: time.work(0.25), "more": lambda: time.work(2)})
    assert found == {"none": 0, "some": 250, "more": 2000}
    assert isinstance(clock_for(torch.device("cpu")), CpuClock)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpus_clock_waits_for_the_gpu():
    """A matrix product that is only queued is still timed to its end."""
    device = torch.device("cuda", 0)
    matrix = torch.randn(4096, 4096, device=device)
    found = CudaClock(device).round(
        {"one": lambda: matrix @ matrix, "ten": lambda: [matrix @ matrix for _ in range(10)]}
    )
    assert torch.cuda.current_stream(device).query(), "the GPU is done"
    assert min(found.values()) > 0
