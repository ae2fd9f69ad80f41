"""The time of attention inside a step: a clock around each call of an attention, read once the step is over."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[Tensor, Tensor, Tensor], Tensor]


class AttentionClock:
    """Adds up the time of the calls that it is put around; on CUDA by events, so that nothing waits inside the step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._ms = 0.0

    def timed(self, attend: Call) -> Call:
        """`attend` with the clock around it."""

        def on_cpu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            start = time.perf_counter()
            out = attend(q, k, v)
            self._ms += 1000 * (time.perf_counter() - start)
            return out

        def on_cuda(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            out = attend(q, k, v)
            end.record()
            self._events.append((start, end))
            return out

        return on_cuda if self.device.type == "cuda" else on_cpu

    def read(self) -> float:
        """Milliseconds of all calls since the last reading; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        ms = self._ms + sum(start.elapsed_time(end) for start, end in self._events)
        self._ms = 0.0
        self._events.clear()
        return ms
