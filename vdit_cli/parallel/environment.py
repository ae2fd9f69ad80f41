"""What a process knows about its place among others from its environment alone, and how it leaves word. No torch."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.atomic import write_text
from vdit_cli.errors import INTERRUPTED, EvditError, Interrupted

LAUNCHER = "EVDIT_LAUNCHER"
"""Environment variable of the ranks that `launch.py` started: its process number."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable of torchrun's ranks: the file that a rank leaves its error in."""

LEFT_BEHIND = "Connection closed by peer"
"""What a rank's error says where the cause is that another one ended (gloo)."""
GRACE = 5.0
"""Seconds in which a rank waits for the first one to tell the same error."""


def is_rank() -> bool:
    """Whether torchrun, `accelerate launch` or `--gpus` started this process as one of several.

    Raises EvditError (exit 2) for numbers that can't be.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    if not rank() < number_of("WORLD_SIZE") or not local_rank() < number_of("WORLD_SIZE"):
        values = ", ".join(f"{name}={os.environ.get(name, '')}" for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
        raise EvditError(f"{values}: ranks are numbered from 0 and fewer than the world's size", where="environment")
    return True


def rank() -> int:
    """This process's number among all of them, 0 where it is alone."""
    return number_of("RANK")


def local_rank() -> int:
    """This process's number on its machine, which is the number of its GPU."""
    return number_of("LOCAL_RANK")


def number_of(name: str) -> int:
    """The number in an environment variable of torchrun, 0 where it is empty or not set. Raises EvditError (exit 2)."""
    value = os.environ.get(name) or "0"
    if not (value.isascii() and value.isdecimal()):
        raise EvditError(
            f"{name} is {value!r}: it must be a whole number from 0 on", where=name, next_steps=[f"unset {name}"]
        )
    return int(value)


def leave_error(error: EvditError) -> bool:
    """Leave `error` to the launcher, which prints it once for all ranks; False where there is no launcher."""
    path = os.environ.get(ERROR_FILE)
    if LAUNCHER not in os.environ or not path:
        return False
    told = {
        "what": error.what,
        "where": error.where,
        "next_steps": list(error.next_steps),
        "exit_code": error.exit_code,
        "time": time.time(),
    }
    # torchrun reads `message`, the launcher reads `evdit`.
    message = {"message": error.what, "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(path).write_text(json.dumps({"message": message, "evdit": told}), encoding="utf-8")
    return True


def not_told_yet(text: str) -> str | None:
    """An error's text to print, with this rank's number where it is not 0; None where the first rank here tells it.

    For ranks that torchrun or `accelerate launch` started. The first one on this machine leaves what it tells beside
    torchrun's files of errors; another one that fails looks for it there, and waits GRACE seconds: the first may fail
    a little later, or not at all. One that lost its connection to the first tells nothing new.
    """
    path, number = os.environ.get(ERROR_FILE), os.environ.get("RANK", "0")
    if not path or "WORLD_SIZE" not in os.environ:
        return text
    told = Path(path).parents[1] / "evdit-error.txt"
    labelled = text if number == "0" else text.replace("error: ", f"error: rank {number}: ", 1)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            write_text(told, text)
        except EvditError:
            return labelled  # a place that can't be written: each rank tells its own
        return labelled
    until = time.monotonic() + GRACE
    while not told.exists() and time.monotonic() < until:
        time.sleep(0.05)
    first = told.read_text(encoding="utf-8") if told.exists() else ""
    return None if first == text or (first and LEFT_BEHIND in text) else labelled


def left_error(content: Mapping[str, Any]) -> tuple[float, EvditError] | None:
    """(time, error) of what `leave_error` wrote, or None where a rank left nothing of the kind."""
    told = content.get("evdit")
    if told is None:
        return None
    if told["exit_code"] == INTERRUPTED:
        return float(told["time"]), Interrupted(told["what"], next_steps=told["next_steps"])
    error = EvditError(
        told["what"], where=told["where"], next_steps=told["next_steps"], exit_code=int(told["exit_code"])
    )
    return float(told["time"]), error


def watch_launcher(seconds: float = 0.5) -> None:
    """End this process soon after its launcher was killed, looking every `seconds`: it would hold the run's lock."""
    told = os.environ.get(LAUNCHER)
    if told is None or os.name != "posix":
        return

    def watch() -> None:
        while os.getppid() == int(told):
            time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="launcher watch", daemon=True).start()
