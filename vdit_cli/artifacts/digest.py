"""SHA-256 digests of files, of JSON content and of the weights in a folder. No torch: tensors are read as bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vdit_cli.artifacts.tensors import Stored, damaged, places
from vdit_cli.errors import ENVIRONMENT, EvditError

CHUNK_BYTES = 1 << 22


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of a folder's files, hidden ones left out.

    Raises EvditError where nothing is.
    """
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise EvditError(f"{path} is not there", where=str(path))
    return content_digest(file_digests(path))


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder and below it, hidden ones left out, by its path in the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


def content_digest(content: Any) -> str:
    """SHA-256 of dataclasses, dicts, lists, strings and numbers as canonical JSON (sorted keys, no spaces, UTF-8).

    Equal content has an equal digest whatever its order of keys; 1 and 1.0 differ. Raises ValueError for NaN and
    infinities and TypeError for what JSON can't say.
    """
    plain = asdict(content) if is_dataclass(content) and not isinstance(content, type) else content
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def weights_digest(files: Iterable[Path]) -> str:
    """SHA-256 over the (key, dtype, shape, bytes) of every tensor in safetensors files, sorted by key.

    It does not depend on how the tensors are spread over shards, on their order in a file, or on the metadata. Give it
    the files that loading reads: what else lies in their folder is no part of the weights. Raises EvditError (exit 3)
    without weights, for a damaged file, and for a key that stands twice.
    """
    files = list(files)
    found: dict[str, tuple[Path, Stored, int]] = {}
    for file in files:
        for key, tensor, start in places(file):
            if key in found:
                raise damaged(file, f"the tensor {key} stands in {found[key][0].name} too")
            found[key] = (file, tensor, start)
    if not found:
        raise EvditError(f"no weights are in {', '.join(map(str, files)) or 'no file'}", exit_code=ENVIRONMENT)
    total = hashlib.sha256()
    for key in sorted(found):
        file, tensor, start = found[key]
        total.update(content_digest([key, tensor.dtype, tensor.shape]).encode("ascii"))
        with file.open("rb") as opened:
            opened.seek(start)
            for chunk in chunks(opened, tensor.bytes):
                total.update(chunk)
    return total.hexdigest()


def chunks(opened: BinaryIO, count: int) -> Iterator[bytes]:
    """The next `count` bytes of an open file, a few MiB at a time."""
    while count > 0:
        chunk = opened.read(min(CHUNK_BYTES, count))
        if not chunk:
            return
        count -= len(chunk)
        yield chunk
