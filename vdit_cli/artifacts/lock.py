"""One writer at a time: a lock of the operating system's on a file, which a dead owner's process can't keep."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import BinaryIO, cast

from vdit_cli.errors import EvditError, quoted

LOCK = ".lock"
OWNER_AT = 1
"""Where the owner's process number stands in the file; the byte before it is the one that Windows locks."""

OWN = re.compile(rb" ?[0-9]{0,20}|\0*")
"""What may stand in it: nothing, a process number, or the zeros that a power cut leaves."""


class FolderLock:
    """The lock of a run folder, its file `.lock`; held from `take` until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self.file: BinaryIO | None = None

    def take(self) -> None:
        """Hold the lock, if it is not held yet. Raises EvditError when another process holds it, or it is no lock."""
        if self.file is not None:
            return
        file = self._opened("a+b")
        if not grasp(file):
            file.seek(OWNER_AT)
            owner = file.read(20).decode("ascii", errors="replace").strip() or "unknown"
            file.close()
            raise EvditError(
                f"{self.path.parent} is in use by process {owner}",
                where=str(self.path),
                next_steps=["wait until it has ended", "another folder with -o"],
            )
        file.seek(0)
        if not OWN.fullmatch(file.read(64)):
            file.close()
            aside = f"mv -n {quoted(self.path)} {quoted(self.path.with_name('lock.aside'))}  (it is somebody's)"
            what = f"{self.path} holds something else than the number of a process: no run can be locked by it"
            raise EvditError(what, where=str(self.path), next_steps=[aside])
        file.truncate(0)
        file.write(b" " + str(os.getpid()).encode("ascii"))
        file.flush()
        self.file = file

    def release(self) -> None:
        """Let go of the lock, if it is held."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def is_held(self) -> bool:
        """Whether any process holds the lock now."""
        if self.file is not None:
            return True
        if not self.path.exists():
            return False
        with self._opened("rb") as file:
            return not grasp(file)

    def _opened(self, mode: str) -> BinaryIO:
        """The file. Raises EvditError (exit 2) for what is none, a pipe that would be waited for among it."""
        look = [f"ls -ld {quoted(self.path)}  (what it is, and whose)"]
        if self.path.exists() and not self.path.is_file():
            raise EvditError(
                f"{self.path} is no regular file: no run can be locked by it", where=str(self.path), next_steps=look
            )
        try:
            return cast(BinaryIO, self.path.open(mode))
        except OSError as error:
            what = f"{self.path} can't be opened: {error.strerror}"
            raise EvditError(what, where=str(self.path), next_steps=look) from error


def run_held_here(path: Path) -> Path | None:
    """The nearest folder above `path` whose lock names this process as its owner, if there is one."""
    own = str(os.getpid()).encode("ascii")
    for folder in path.absolute().parents:
        try:
            if not (folder / LOCK).is_file():
                continue
            with (folder / LOCK).open("rb") as file:
                file.seek(OWNER_AT)
                if file.read(20).strip() == own:
                    return folder
        except OSError:
            continue
    return None


def grasp(file: BinaryIO) -> bool:
    """Lock an open file for this process without waiting; whether that went well. Closing the file lets go."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
