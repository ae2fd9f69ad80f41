"""What may stand where a run's lock belongs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vdit_cli.artifacts.lock import FolderLock, run_held_here
from vdit_cli.errors import USAGE, EvditError


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file_is_told(tmp_path: Path, make: Callable[[Path], None]):
    """To who would hold it and to who asks; a folder above with such a one is no run, and no pipe is waited for."""
    place = tmp_path / ".lock"
    make(place)
    lock = FolderLock(tmp_path)
    for ask in (lock.take, lock.is_held):
        with pytest.raises(EvditError, match="no regular file") as caught:
            ask()
        assert (caught.value.where, caught.value.exit_code) == (str(place), USAGE)
        assert caught.value.next_steps == (f"ls -ld {place}  (what it is, and whose)",)
    assert run_held_here(tmp_path / "a.txt") is None


def test_a_lock_that_holds_something_else_is_taken(tmp_path: Path):
    """It is the system's lock on the file that counts."""
    (tmp_path / ".lock").write_bytes(bytes(range(256)))
    lock = FolderLock(tmp_path)
    assert not lock.is_held()
    lock.take()
    assert lock.is_held() and run_held_here(tmp_path / "a.txt") == tmp_path
    lock.release()
