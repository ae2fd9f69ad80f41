"""Times of calls that compete: warmed up, taken in turns, on the device's own clock.

In turns, because clocks drift with temperature and with other work: what slows one call down slows its rivals, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

Work = Callable[[], object]
WARM_UPS = 2
MOST_ROUNDS = 2000
FLUSHED_BYTES = 256 << 20
"""Written before each call on CUDA, so that no call finds its operands in the L2 cache (at most 128 MiB so far)."""


@dataclass(frozen=True)
class Times:
    """Milliseconds of the repeats of one call."""

    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one, ms."""
        return median(self.ms)

    @property
    def spread(self) -> float:
        """The width of the middle half over the median; 0 where there was one repeat."""
        if len(self.ms) < 2:
            return 0.0
        low, _, high = quantiles(self.ms, n=4, method="inclusive")
        return (high - low) / self.median


class CpuClock:
    """Wall-clock time of calls that return when they are done."""

    def round(self, calls: Mapping[str, Work]) -> dict[str, float]:
        """Milliseconds of one call of each, in the order given."""
        found = {}
        for name, work in calls.items():
            start = time.perf_counter()
            work()
            found[name] = 1000 * (time.perf_counter() - start)
        return found


class CudaClock:
    """The GPU's own time between two events around a call, the L2 cache flushed before it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def round(self, calls: Mapping[str, Work]) -> dict[str, float]:
        """Milliseconds of one call of each, in the order given; waits for the last."""
        events = {name: [torch.cuda.Event(enable_timing=True) for _ in range(2)] for name in calls}
        with torch.cuda.device(self.device):
            for name, work in calls.items():
                self.flushed.zero_()
                events[name][0].record()
                work()
                events[name][1].record()
            torch.cuda.synchronize()
        return {name: start.elapsed_time(end) for name, (start, end) in events.items()}


def clock_for(device: torch.device) -> CpuClock | CudaClock:
    """The clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def time_in_turns(
    calls: Mapping[str, Work], clock: CpuClock | CudaClock, seconds: float, least_repeats: int
) -> dict[str, Times]:
    """Times of each call: rounds of one call each, the first one changing, until `seconds` and `least_repeats` are met.

    An exception of a call is its caller's: try each call once beforehand.
    """
    names = list(calls)
    for _ in range(WARM_UPS):
        clock.round(calls)
    taken: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    rounds = 0
    while rounds < least_repeats or (time.perf_counter() - start < seconds and rounds < MOST_ROUNDS):
        first = rounds % len(names)
        found = clock.round({name: calls[name] for name in names[first:] + names[:first]})
        for name, ms in found.items():
            taken[name].append(ms)
        rounds += 1
    return {name: Times(tuple(ms)) for name, ms in taken.items()}
