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


def test_a_lock_that_holds_something_else_is_left_as_it_is(tmp_path: Path):
    """It is somebody's file, which was overwritten; what a process leaves that died, or a power cut, is taken."""
    place, lock = tmp_path / ".lock", FolderLock(tmp_path)
    for content in (bytes(range(256)), b" 12 monkeys", b"\n", b" 1" * 40):
        place.write_bytes(content)
        assert not lock.is_held()
        with pytest.raises(EvditError, match="holds something else than the number of a process") as caught:
            lock.take()
        assert (caught.value.exit_code, caught.value.where) == (USAGE, str(place)) and place.read_bytes() == content
        assert caught.value.next_steps == (f"mv -n {place} {tmp_path / 'lock.aside'}  (it is somebody's)",)
    for content in (b"", b" 4711", b" ", bytes(5)):
        place.write_bytes(content)
        lock.take()
        assert lock.is_held() and run_held_here(tmp_path / "a.txt") == tmp_path
        lock.release()
