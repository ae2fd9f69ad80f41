"""Files that are whole or not there: written beside their place, synced to the disk and renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vdit_cli.errors import FAILED, EvditError

UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
LEFTOVER = re.compile(r"\.(?P<stem>.+)\.[0-9a-f]{8}(?P<suffix>(?:\.(?!old$)[A-Za-z0-9]+)?)(?P<aside>\.old)?")
"""Names that `replacing` gives to what is not in its place yet, and to a folder that stepped aside."""
FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path` to write a file or a folder to; on leaving it is synced and takes its place.

    The temporary name keeps the suffix. After any exception it is removed and whatever stood at `path` is untouched.
    Raises EvditError when the folder can't be written (exit 2) or the disk is full (exit 1).
    """
    path = Path(path)
    beside = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        sync(beside)
        put_in_place(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        raise readable(error, path) from error
    finally:
        remove(beside)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` in UTF-8 to `path`, whole or not at all. Raises EvditError as `replacing` does."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON to `path`, whole or not at all. Raises ValueError for NaN."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def put_in_place(beside: Path, path: Path) -> None:
    """Rename `beside` to `path`; a folder that stands there steps aside first and is removed last."""
    if not (beside.is_dir() and path.is_dir()):
        os.replace(beside, path)
        return
    aside = path.with_name(f"{beside.name}.old")
    os.replace(path, aside)
    try:
        os.replace(beside, path)
    except OSError:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left unfinished in `folder` and below; the caller holds the folder's lock.

    A folder that had stepped aside, and whose successor never came, is put back.
    """
    for path in sorted(folder.rglob(".*")):
        found = LEFTOVER.fullmatch(path.name)
        if found is None or not path.exists():
            continue
        place = path.with_name(found["stem"] + found["suffix"])
        if found["aside"] and not place.exists():
            os.replace(path, place)
        else:
            remove(path)


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
            where=str(error.filename or path.parent),
            next_steps=["another place with -o"],
        )
    return error
