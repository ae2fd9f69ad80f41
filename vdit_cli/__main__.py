"""The `evdit` script, and `python -m vdit_cli`: what surrounds the command line, from the first moment to the last.

Ctrl-C is minded before anything large is imported and after the command has ended, and a standard stream that a caller
closed leads nowhere, so that no file of ours gets its number.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> int:
    """Run this process's command line and return its exit code."""
    signal.signal(signal.SIGINT, leave)
    open_closed_streams()
    from vdit_cli.cli.app import explain
    from vdit_cli.cli.app import main as command_line

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return command_line()
    except KeyboardInterrupt as error:  # while another error was being told
        return explain(error)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave(number: int, frame: FrameType | None) -> None:
    """End the process at once: nothing has begun."""
    os.write(2, b"error: interrupted\n")
    os._exit(130)


def open_closed_streams() -> None:
    """Open a standard stream that is closed (`>&-`) to nowhere, under its own number."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
