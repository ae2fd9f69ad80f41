"""Folders of the person who runs this: data, caches, and paths that begin with "~"."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import platformdirs

from vdit_cli.errors import EvditError, quoted

NAME = "evdit"


def user_data_path() -> Path:
    """Where fetched and registered models lie; without a home folder, a place in the system's temporary folder."""
    try:
        return platformdirs.user_data_path(NAME, appauthor=False)
    except RuntimeError:
        return homeless("data")


def user_cache_path() -> Path:
    """Where measured times lie; without a home folder, a place in the system's temporary folder."""
    try:
        return platformdirs.user_cache_path(NAME, appauthor=False)
    except RuntimeError:
        return homeless("cache")


def homeless(kind: str) -> Path:
    """The folder of this user in the temporary one: containers run as users of no name, who have no home."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"{NAME}-{user}" / kind


def expanded(path: str, where: str) -> Path:
    """`path` with "~" as the home folder. Raises EvditError (exit 2) for a user without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        steps = [f"{quoted(f'./{path}')}  (one of that name, here)"]
        raise EvditError(
            f"{path} begins with a home folder that is not known", where=where, next_steps=steps
        ) from error
