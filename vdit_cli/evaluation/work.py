"""Many small jobs whose results are kept: in this process or several, in a file of JSON lines, until Ctrl-C.

Results depend neither on the number of processes nor on what the file had already.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, BinaryIO

from vdit_cli.artifacts.atomic import check_writable, through_links
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.artifacts.lock import grasp
from vdit_cli.errors import FAILED, EvditError, Interrupted, quoted, together
from vdit_cli.timing import Progress

SCHEMA = "evdit.readings/2"
"""The first line of a file of results; its number goes up when what is read of a clip changes."""
CLIPS_A_PROCESS = 8
"""A process takes as long to start as it takes to read so many clips."""


class Work:
    """Calls of pure functions whose results JSON can hold; `known` has those that are there, by key."""

    def __init__(
        self, known: dict[str, Any], file: BinaryIO | None, pool: ProcessPoolExecutor | None, progress: Progress
    ):
        self.known = known
        self.file = file
        self.pool = pool
        self.progress = progress

    def results(self, label: str, function: Callable[..., Any], calls: Mapping[str, tuple]) -> dict[str, Any]:
        """`function(*arguments)` for each key of `calls`, of which only those that are not known are made.

        Raises: Interrupted when the person asked to stop before the last one; what the function raises, several
        EvditErrors together, once all calls were made.
        """
        failed: dict[str, EvditError] = {}
        missing = {key: arguments for key, arguments in calls.items() if key not in self.known}
        if len(missing) < len(calls):
            self.progress.say(f"{label}: {len(calls) - len(missing)} of {len(calls)} are there already")
        if missing:
            self.progress.stage(label, len(missing))
        for number, (key, value) in enumerate(self._made(function, missing), start=1):
            if isinstance(value, EvditError):
                if not failed:
                    self.progress.say(f"{value.what}; the others are tried, to name all that fail")
                failed[key] = value
            else:
                self._keep(key, value)
            self.progress.advance()
            if self.progress.should_stop() and number < len(missing):
                raise self._stopped(label, len(calls) - len(missing) + number - len(failed), len(calls))
        self.progress.end_stage()
        if failed:
            raise together([failed[key] for key in calls if key in failed], f"{label} failed for {len(failed)}")
        return {key: self.known[key] for key in calls}

    def _keep(self, key: str, value: Any) -> None:
        """Note a result, also in the file."""
        self.known[key] = value
        if self.file is not None:
            self.file.write(_line(key, value))
            self.file.flush()

    def _made(self, function: Callable[..., Any], calls: Mapping[str, tuple]) -> Iterator[tuple[str, Any]]:
        """Keys and results, or the EvditErrors that were raised instead, in the order in which they come."""
        if self.pool is None:
            yield from ((key, _result_of(partial(function, *arguments))) for key, arguments in calls.items())
            return
        keys = {self.pool.submit(function, *arguments): key for key, arguments in calls.items()}
        try:
            for future in as_completed(keys):
                yield keys[future], _result_of(future.result)
        except BrokenProcessPool as error:
            what = "a process that read videos was ended from outside, perhaps for want of memory"
            raise EvditError(what, next_steps=["--workers 1"], exit_code=FAILED) from error

    def _stopped(self, label: str, done: int, total: int) -> Interrupted:
        if self.file is not None:
            return Interrupted(f"stopped: {label} is done for {done} of {total}", next_steps=["the same command again"])
        return Interrupted(f"stopped: {label} was done for {done} of {total}, which is no score yet")


@contextmanager
def working(kept: Path | None, workers: int, progress: Progress) -> Iterator[Work]:
    """Work in `workers` processes (1: in this one) that keeps its results in the file `kept`, where one is given.

    Raises: EvditError (exit 2) for a file that holds something else, or a place that can't be written.
    """
    with ExitStack() as stack:
        known, file = _opened(kept, stack) if kept else ({}, None)
        pool = None
        if workers > 1:
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin)
            stack.callback(pool.shutdown, cancel_futures=True)
        yield Work(known, file, pool, progress)


def workers_for(clips: int) -> int:
    """As many processes as there are cores for this one, but none for fewer than CLIPS_A_PROCESS clips."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, clips // CLIPS_A_PROCESS))


def _begin() -> None:
    """How a process of the pool begins: the first one minds Ctrl-C for all, none outlives it, each keeps to one core.

    What reads and renders is imported later, with the first call, and minds the variable then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _opened(path: Path, stack: ExitStack) -> tuple[dict[str, Any], BinaryIO]:
    """What a file of results holds, and the file, open for more; a last line that was cut short is dropped."""
    told = f"-o {path}"
    if path.is_dir():
        step = f"-o {quoted(path / 'readings.jsonl')}"
        raise EvditError(f"{path} is a folder: readings are kept in a file", where=told, next_steps=[step])
    if path.exists() and not path.is_file():
        raise EvditError(f"{path} is no regular file, in which readings could be kept", where=told)
    check_writable(path, where=told)
    through_links(path).parent.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context(path.open("a+b"))
    if not grasp(file):
        raise EvditError(f"{path} is in use by another process", where=told, next_steps=["wait until it has ended"])
    file.seek(0)
    text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    header = json.dumps({"schema": SCHEMA}).encode() + b"\n"
    try:
        if not (whole or header).startswith(header) or not header.startswith(text[: len(header)]):
            raise ValueError(f"its first line is not {header.decode().strip()}")
        known = dict(map(_read_line, whole.splitlines()[1:]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{path} is no file of readings of this version, or damaged: {error}"
        raise EvditError(what, where=told, next_steps=["another name"]) from error
    file.truncate(len(whole))
    file.write(b"" if whole else header)
    return known, file


def _result_of(call: Callable[[], Any]) -> Any:
    """What a call returns, or the EvditError that it raises."""
    try:
        return call()
    except EvditError as error:
        return error


def _line(key: str, value: Any) -> bytes:
    """A result as the file has it, with a digest, so that no line that was changed is taken for a reading."""
    seal = content_digest([key, value])
    return json.dumps({"key": key, "value": value, "sha256": seal}, allow_nan=False).encode() + b"\n"


def _read_line(line: bytes) -> tuple[str, Any]:
    """Key and value of a line. Raises ValueError, KeyError, TypeError or RecursionError for another than `_line`'s."""
    told = json.loads(line)
    if content_digest([told["key"], told["value"]]) != told["sha256"]:
        raise ValueError(f"the value of {told['key']} is not what was kept")
    return told["key"], told["value"]
