"""The one reader of safetensors files: whole ones, whose names, types and shapes are looked at before any tensor is.

No torch, unless it is asked for tensors of it. Nothing is copied: a file is mapped.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from vdit_cli.errors import ENVIRONMENT, EvditError

FLOATS = ("F64", "F32", "F16", "BF16")
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
POINTER = b"version https://git-lfs"
"""What a git-lfs pointer begins with."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its type as safetensors calls it, and its shape; of a wanted one, -1 is any size."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        bits = BITS.get(self.dtype) or int(self.dtype.lstrip("BUIF").partition("_")[0])
        for size in self.shape:
            bits *= size
        return bits // 8

    def fits(self, found: Stored) -> bool:
        """Whether a tensor is such a one; "float" is any of FLOATS."""
        is_type = found.dtype in FLOATS if self.dtype == "float" else found.dtype == self.dtype
        sizes = len(found.shape) == len(self.shape) and all(
            wanted in (-1, own) for wanted, own in zip(self.shape, found.shape, strict=True)
        )
        return is_type and sizes

    def __str__(self) -> str:
        return f"{self.dtype} {['any' if size < 0 else size for size in self.shape]}".replace("'", "")


def opened(
    file: Path, framework: str = "np", device: str = "cpu", wanted: Mapping[str, Stored] | None = None
) -> safe_open:
    """The file, to be read as "np" or "pt"; `wanted` are the tensors that it must hold, others may stand beside.

    Raises EvditError (exit 3), naming the file and the tensor, where it is missing, cut short, damaged or another's.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise damaged(file, "it is no regular file")
        found = safe_open(file, framework=framework, device=device)
    except FileNotFoundError as error:
        raise EvditError(f"{file} is missing", where=str(file), next_steps=AGAIN, exit_code=ENVIRONMENT) from error
    except (OSError, ValueError, SafetensorError) as error:
        if is_pointer(file):
            raise damaged(file, "it is a git-lfs pointer: the weights themselves were not fetched") from error
        raise damaged(file, f"{error} ({status.st_size} bytes)") from error
    if wanted:
        tensors = stored(found)
        for name, form in wanted.items():
            if name not in tensors:
                raise damaged(file, f"it holds no {name}")
            if not form.fits(tensors[name]):
                raise damaged(file, f"{name} is {tensors[name]}, not {form}")
    return found


def is_pointer(file: Path) -> bool:
    """Whether a file is what git-lfs leaves in place of one that was not fetched."""
    with file.open("rb") as start:
        return start.read(len(POINTER)) == POINTER


def stored(file: safe_open) -> dict[str, Stored]:
    """The tensors of an open file by name, in the order of their bytes."""
    slices = ((name, file.get_slice(name)) for name in file.offset_keys())
    return {name: Stored(each.get_dtype(), tuple(each.get_shape())) for name, each in slices}


def places(file: Path) -> Iterator[tuple[str, Stored, int]]:
    """Name, form and first byte of each tensor of a file: they lie behind the header without gaps, to the end."""
    with opened(file) as open_file:
        tensors = stored(open_file)
    at = file.stat().st_size - sum(each.bytes for each in tensors.values())
    for name, each in tensors.items():
        yield name, each, at
        at += each.bytes


AGAIN = ["bring the file again"]


def damaged(file: Path, why: str) -> EvditError:
    """The error for a safetensors file that can't be what was saved."""
    return EvditError(f"{file} is damaged: {why}", where=str(file), next_steps=AGAIN, exit_code=ENVIRONMENT)
