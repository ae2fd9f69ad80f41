"""What the scripts of this folder share: a fault is told as `evdit` tells it, with its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vdit_cli.cli.app import explain
from vdit_cli.errors import EvditError
from vdit_cli.reader import read_object


def run(main: Callable[[Sequence[str]], None]) -> int:
    """The exit code of `main` on the words of the command line; its error is printed."""
    try:
        main(sys.argv[1:])
    except (EvditError, OSError, KeyboardInterrupt) as error:
        return explain(error)
    return 0


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """While this lasts, values of a file are read: what is not there, or is of another kind, is told with its name."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise EvditError(f"{path} does not hold what is read of it: {why}", where=str(path)) from error


def folder_at(word: str) -> Path:
    """The folder of that name. Raises EvditError where there is none."""
    if not word or not Path(word).is_dir():
        raise EvditError(f"{word or 'an empty name'} is no folder that is there", where=word or None)
    return Path(word)


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises EvditError for anything else."""
    return read_object(dict[str, Any], path, "file of figures")
