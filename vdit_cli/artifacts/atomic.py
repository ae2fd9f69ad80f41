"""Files that are whole or not there: written beside their place, synced to the disk and renamed."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.unfinished import ASIDE, TEMPORARY, note
from vdit_cli.errors import FAILED, EvditError

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` to write a file or a folder to; on leaving it is synced and takes its place.

    The temporary name keeps the suffix. A link is written through. After any exception the temporary is removed and
    whatever stood at `path` is untouched.
    Raises EvditError when the folder can't be written (exit 2) or the disk is full (exit 1).
    """
    with replacing_together(path) as (beside,):
        yield beside


@contextmanager
def replacing_together(*paths: Path | str, drop: Callable[[Path], bool] | None = None) -> Iterator[tuple[Path, ...]]:
    """`replacing` for results that belong together: none takes its place before all are written and on the disk.

    With `drop` a folder that is there already stays the same folder, which may be a mount point or somebody's working
    directory: its new files are moved in, and then those of the old ones that have no successor and for which `drop`
    is true are removed. Without it the old folder makes way as a whole.
    """
    places = [through_links(Path(path)) for path in paths]
    besides: list[Path] = []
    try:
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            besides.append(beside_of(place, inside=drop is not None and place.is_dir()))
            note(besides[-1], place)
        yield tuple(besides)
        for beside in besides:
            sync(beside)
        with interrupts_waiting():
            for beside, place in zip(besides, places, strict=True):
                put_in_place(beside, place, drop)
        for folder in {place.parent for place in places}:
            sync_folder(folder)
    except OSError as error:
        of = [place for beside, place in zip(besides, places, strict=False) if str(beside) in str(error.filename)]
        raise readable(error, (of or places)[0]) from error
    finally:
        for beside in besides:
            remove(beside)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` in UTF-8 to `path`, whole or not at all. Raises EvditError as `replacing` does."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON to `path`, whole or not at all. Raises ValueError for NaN."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_writable(path: Path, where: str | None = None) -> None:
    """Raise EvditError (exit 2) where `path` could not be written: asked before the work that makes it.

    A file without a name is opened in the folder itself, or else in the nearest one above that is there; a folder such
    as /proc refuses that though its permissions allow it.
    """
    try:
        path.lstat()
    except (OSError, ValueError) as error:  # a zero byte in the name is a ValueError
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            why = getattr(error, "strerror", None) or error
            raise EvditError(f"{path} can't be written: {why}", where=where) from error
    place = through_links(path).absolute()
    parent = place if place.is_dir() else next(folder for folder in place.parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        why = f"{parent} is no folder that you may write to"
        raise EvditError(f"{path} can't be written: {why}", where=where, next_steps=["another place"]) from error


def free_name(path: Path) -> Path:
    """`path`, or with -2, -3, ... behind its stem where something is there; "." and ".." by their own names."""
    if path.name in ("", ".."):
        path = path.resolve()
        path = path if path.name else path / "new"
    names = (path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


def through_links(path: Path) -> Path:
    """Where a path leads that is a link; another one as it is."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def beside_of(place: Path, inside: bool = False) -> Path:
    """A new name beside `place` for what is to stand there, or in it: that is on the same disk, be it a mount point.

    A suffix that decides the format is kept.
    """
    suffix = place.suffix if len(place.suffix) < 16 and place.suffix != ASIDE else ""
    folder = place if inside else place.parent
    return folder.absolute() / f"{TEMPORARY}{secrets.token_hex(4)}{suffix}"


@contextmanager
def interrupts_waiting() -> Iterator[None]:
    """Let a Ctrl-C wait until the block is done: what is being put in place is put in place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    minds = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, minds)
        if heard:
            signal.raise_signal(signal.SIGINT)


def put_in_place(beside: Path, place: Path, drop: Callable[[Path], bool] | None = None) -> None:
    """Give what was written beside `place` its name; of two folders as `replacing_together` says."""
    if beside.is_dir() and place.is_dir():
        if drop is None:
            swap(beside, place)
        else:
            move_into(beside, place, drop)
        return
    try:
        os.replace(beside, place)
    except OSError as error:
        if error.errno != errno.EBUSY or beside.is_dir():
            raise
        write_over(beside, place)


def write_over(beside: Path, place: Path) -> None:
    """Give a file that is a mount point the content of another, or its own again where that fails."""
    old = beside_of(beside)
    note(old, place)
    try:
        shutil.copyfile(place, old)
        try:
            shutil.copyfile(beside, place)
            sync(place)
        except OSError:
            shutil.copyfile(old, place)
            raise
    finally:
        remove(old)


def swap(beside: Path, place: Path) -> None:
    """Give a folder the place of another one, which steps aside first and is removed last."""
    aside = beside.with_name(f"{beside.name}{ASIDE}")
    note(aside, place)
    os.replace(place, aside)
    try:
        os.replace(beside, place)
    except OSError:
        os.replace(aside, place)
        raise
    shutil.rmtree(aside)


def move_into(beside: Path, place: Path, drop: Callable[[Path], bool]) -> None:
    """Move the files of one folder into another, each over the one of its name; then remove what `drop` is true of."""
    moved = {file.name for file in beside.iterdir()}
    for name in sorted(moved):
        os.replace(beside / name, place / name)
    for file in place.iterdir():
        if file.is_file() and file.name not in moved and drop(file):
            file.unlink()


def sync(path: Path) -> None:
    """Have the operating system put a file, or every file of a folder, on the disk."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Have the operating system put a folder's list of names on the disk, where it knows how to."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a temporary file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        path.unlink()


def readable(error: OSError, path: Path) -> EvditError | OSError:
    """The error of a full disk (exit 1) or of an unwritable place (exit 2) as an EvditError; another as it is."""
    if error.errno in FULL:
        return EvditError(
            f"the disk is full: {path} was not written, and what stood there before is untouched",
            where=str(path.parent),
            next_steps=["free some space", "another folder with -o"],
            exit_code=FAILED,
        )
    if error.errno in UNWRITABLE or not path.parent.is_dir():
        return EvditError(
            f"{path} can't be written: {error.strerror}",
            where=str(path if path.parent.is_dir() else error.filename or path.parent),
            next_steps=["another place with -o"],
        )
    return error
