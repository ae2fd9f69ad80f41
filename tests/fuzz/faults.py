"""Faults at named points: the n-th time that a command is about to write, has put in place, begins or counts a part.

`python -m tests.fuzz.faults kill 7 generate ...` runs `evdit generate ...` and kills it at its seventh point.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from vdit_cli.artifacts import atomic
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.cli.console import Console

POINTS: tuple[tuple[Any, str, bool], ...] = (
    (atomic, "sync", False),
    (atomic, "put_in_place", True),
    (RunDir, "save", True),
    (Console, "stage", True),
    (Console, "advance", True),
)
"""Where a fault may strike: an owner, the name of its function, and whether it strikes after the call."""
WRITES = ("sync",)
"""Points at which the disk may be full."""


class Points:
    """Counts the points that a command passes, and strikes at one or several of them."""

    def __init__(self, fault: str = "none", at: int = 0) -> None:
        self.fault, self.at = fault, at
        self.passed: list[str] = []

    def reached(self, name: str) -> None:
        """A point is reached: strike where it is the one."""
        self.passed.append(name)
        number = len(self.passed)
        if self.fault == "kill" and number == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "interrupt" and number == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        if self.fault == "interrupt twice" and number in (self.at, self.at + 1):
            os.kill(os.getpid(), signal.SIGINT)
        if self.fault == "full" and name in WRITES and number >= self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def watching(self) -> Iterator[Points]:
        """Let every point be counted inside the block."""
        with ExitStack() as stack:
            for owner, name, strikes_after in POINTS:
                watched = self._watched(getattr(owner, name), name, strikes_after)
                stack.enter_context(patch.object(owner, name, watched))
            yield self

    def _watched(self, real: Callable[..., Any], name: str, strikes_after: bool) -> Callable[..., Any]:
        def point(*args: Any, **named: Any) -> Any:
            if not strikes_after:
                self.reached(name)
            found = real(*args, **named)
            if strikes_after:
                self.reached(name)
            return found

        return point


def run_with_fault(fault: str, at: int, words: Sequence[str]) -> int:
    """What this process, which is started for it, would end with as `evdit` with these words."""
    from vdit_cli.__main__ import main

    sys.argv[1:] = words
    with Points(fault, at).watching():
        return main()


if __name__ == "__main__":
    sys.exit(run_with_fault(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
