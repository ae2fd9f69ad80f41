"""Memory that a generation did take, and what a person is told where it found no more."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from vdit_cli.errors import OUT_OF_MEMORY, EvditError

POLL_SECONDS = 0.02
CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class PeakMemory:
    """The most memory in use on a device inside the `with` block, in bytes: `peak`, whole process on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0

    def __enter__(self) -> PeakMemory:
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif not _forget_high_water():
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.read()
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def read(self) -> int:
        """The peak so far."""
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        elif self._thread is None:
            self.peak = _high_water()
        else:
            self.peak = max(self.peak, psutil.Process().memory_info().rss)
        return self.peak

    def _watch(self) -> None:
        """Where the operating system keeps no high-water mark that can be reset: look again and again."""
        process = psutil.Process()
        while not self._stopped.wait(POLL_SECONDS):
            self.peak = max(self.peak, process.memory_info().rss)


def _forget_high_water() -> bool:
    """Reset Linux's mark of this process's resident memory; False where that can't be done."""
    if os.name != "posix" or not STATUS.exists():
        return False
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water() -> int:
    """Linux's high-water mark of this process's resident memory, bytes."""
    for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return psutil.Process().memory_info().rss


@contextmanager
def out_of_memory_told(stage: str, next_steps: list[str]) -> Iterator[None]:
    """Turn "out of memory" inside the block into an EvditError (exit 4) that names the stage and what to try."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise EvditError(
            f"out of memory to {stage}: {(str(error).splitlines() or ['no more to be had'])[0]}",
            next_steps=next_steps,
            exit_code=OUT_OF_MEMORY,
        ) from error
