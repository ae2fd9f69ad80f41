"""The one clock, and what a long loop tells to and asks of the person who watches it. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What a stage tells to and asks of the person watching; `cli/console.py` draws it, tests use `Silent`."""

    def stage(self, label: str, total: int) -> None:
        """Begin a part of `total` equal units of work called `label`, ending the part before it."""

    def advance(self, note: str = "") -> None:
        """One unit is done; `note` stands beside the bar (step time, loss)."""

    def end_stage(self) -> None:
        """End the part at hand, if there is one."""

    def say(self, line: str) -> None:
        """A line for the person, on stderr."""

    def detail(self, line: str) -> None:
        """A line for a person who asked for all of it (`-v`)."""

    def should_stop(self) -> bool:
        """Whether the person has asked to stop after the unit at hand (first Ctrl-C)."""


class Silent:
    """A `Progress` that shows nothing and keeps what was said in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def stage(self, label: str, total: int) -> None:
        """Shows nothing."""

    def advance(self, note: str = "") -> None:
        """Shows nothing."""

    def end_stage(self) -> None:
        """Shows nothing."""

    def say(self, line: str) -> None:
        """Keep the line."""
        self.lines.append(line)

    def detail(self, line: str) -> None:
        """Nobody asked for it."""

    def should_stop(self) -> bool:
        """Nobody asks to stop."""
        return False


class Stopwatch:
    """Seconds spent in named phases; phases that recur are added up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the wall-clock seconds spent inside the `with` block to `seconds[name]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
