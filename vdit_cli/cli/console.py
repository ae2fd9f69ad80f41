"""What a person sees: data on stdout, progress and remarks on stderr, bars on a terminal and plain lines off it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any, TextIO

from vdit_cli.errors import FAILED, EvditError, printable
from vdit_cli.parallel.environment import rank

LINE_SECONDS = 5.0
"""Off a terminal a progress line is written at most this often."""


class Console:
    """The `timing.Progress` of the command line; `with Console() as console:` also minds Ctrl-C inside the block.

    The first Ctrl-C makes `should_stop` true and says so; the second raises KeyboardInterrupt. Of several ranks
    (environment variable RANK) only the first one writes; every rank minds Ctrl-C. `verbose` shows details too.
    """

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, verbose: bool = False) -> None:
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self.speaks = rank() == 0
        self.verbose = verbose
        self.stop_asked = False
        self.minds: Any = None
        self.shown: StageLines | StageBar | None = None

    def __enter__(self) -> Console:
        if threading.current_thread() is threading.main_thread():
            self.minds = signal.signal(signal.SIGINT, self.on_interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_stage()
        if self.minds is not None:
            signal.signal(signal.SIGINT, self.minds)
            self.minds = None

    def on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ask to stop at the first Ctrl-C, quit at the second. Raises KeyboardInterrupt."""
        if self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True
        if self.speaks:  # past the buffers: a signal may arrive in the middle of a write to them
            os.write(2, b"\nstopping after the step at hand; Ctrl-C again quits at once\n")

    def stage(self, label: str, total: int) -> None:
        """Begin a part of `total` equal units called `label`."""
        self.end_stage()
        if self.speaks:
            self.shown = StageBar(self.err, label, total) if self.err.isatty() else StageLines(self.err, label, total)

    def advance(self, note: str = "") -> None:
        """One unit of the part at hand is done."""
        if self.shown is not None:
            self.shown.advance(note)

    def end_stage(self) -> None:
        """Close the part at hand, if there is one."""
        if self.shown is not None:
            self.shown.end()
            self.shown = None

    def say(self, line: str) -> None:
        """A line on stderr."""
        if not self.speaks:
            return
        if self.shown is not None:
            self.shown.say(line)
        else:
            tell(self.err, line)

    def detail(self, line: str) -> None:
        """A line on stderr, where all was asked for."""
        if self.verbose:
            self.say(line)

    def should_stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.stop_asked

    def data(self, text: str) -> None:
        """Text on stdout: what the command was asked for. Raises EvditError (1) where it can't be written."""
        if not self.speaks:
            return
        try:
            write_line(self.out, text)
        except BrokenPipeError:  # `evdit ... | head`: it has read what it wanted
            silence(self.out)
        except OSError as error:
            silence(self.out)
            what = f"the result can't be written to stdout: {error.strerror}"
            steps = ["another file or a pipe behind >"]
            raise EvditError(what, where="stdout", next_steps=steps, exit_code=FAILED) from error

    def json(self, schema: str, content: Mapping[str, Any]) -> None:
        """One JSON object on stdout, its first key the schema ("evdit.models/1"). Raises ValueError for NaN."""
        is_utf8 = encoding_of(self.out).lower().replace("-", "") == "utf8"
        self.data(json.dumps({"schema": schema, **content}, indent=2, ensure_ascii=not is_utf8, allow_nan=False))


def tell(stream: TextIO, line: str) -> None:
    """A line for the person who watches; where nobody can read it any more, the work goes on."""
    try:
        write_line(stream, line)
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Let a stream whose reader has gone lead nowhere, also for what it still holds back."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def write_line(stream: TextIO, line: str) -> None:
    """One whole line, at once; what steers a terminal or the encoding lacks is written as its number."""
    encoding = encoding_of(stream)
    line = printable(line)
    stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def encoding_of(stream: TextIO) -> str:
    """The encoding of a text stream; one in memory takes anything."""
    return getattr(stream, "encoding", None) or "utf-8"


def duration(seconds: float) -> str:
    """Seconds as a person writes them: "0.34 s", "12 s", "3 min 5 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class StageLines:
    """Progress as plain lines: one at the start, one every few seconds, one at the end."""

    def __init__(self, stream: TextIO, label: str, total: int) -> None:
        self.stream, self.label, self.total = stream, label, total
        self.done = 0
        self.note = ""
        self.start = self.told = time.monotonic()
        self.say(f"{label}: 0/{total}")

    def advance(self, note: str) -> None:
        """Count a unit; write a line when the last one is old enough."""
        self.done, self.note = self.done + 1, note
        now = time.monotonic()
        if now - self.told >= LINE_SECONDS and self.done < self.total:
            self.told = now
            each = (now - self.start) / self.done
            left = duration(each * (self.total - self.done))
            self.say(f"{self.label}: {self.done}/{self.total}, {duration(each)} each, {left} left" + self.remark())

    def end(self) -> None:
        """Write how far it came and how long it took."""
        self.say(f"{self.label}: {self.done}/{self.total} in {duration(time.monotonic() - self.start)}" + self.remark())

    def remark(self) -> str:
        """The last note, set off by a comma."""
        return f", {self.note}" if self.note else ""

    def say(self, line: str) -> None:
        """A line that is not about the part at hand."""
        tell(self.stream, line)


class StageBar:
    """Progress as one bar on a terminal: units, time of a unit, time left, the last note."""

    def __init__(self, stream: TextIO, label: str, total: int) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.start = time.monotonic()
        self.done = 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[each]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=RichConsole(file=stream),
        )
        self.task = self.bar.add_task(printable(label), total=total, each="", note="")
        self.bar.start()

    def advance(self, note: str) -> None:
        """Count a unit and redraw."""
        self.done += 1
        each = duration((time.monotonic() - self.start) / self.done) + " each"
        self.bar.update(self.task, advance=1, each=each, note=printable(note))

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.bar.console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """Leave the bar as it is and go to the next line."""
        self.bar.stop()
