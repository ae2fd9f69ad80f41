"""One safetensors file: its bytes decided by what it holds, a full disk an OSError, trained tensors in a type that
keeps them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

MOST_LOST = 0.02
"""Share of a training's update that rounding to the stored type may lose."""


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that others may read, as the umask says; equal content gives equal bytes.

    Raises OSError for a full disk.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata=dict(metadata or {}))
        _sort_metadata(path)
        path.chmod(mode)  # safetensors makes files that only their owner can read, whatever the umask
    except SafetensorError as error:
        # safetensors tells a full disk only in words; as an OSError it is answered like any other.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order: safetensors writes them in another one each time.

    Its JSON has no spaces and only what must be escaped is, which is how it is written here: the length stays.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(length))


def trained_tensor(stored: Tensor, exact: Tensor) -> Tensor:
    """A trained tensor as it is written: in the type of the `stored` one where that keeps it, else in float32.

    It keeps it where |rounded - exact| is at most MOST_LOST of |exact - stored| (Frobenius norms): float16 alone loses
    half of an update of 3e-4 of the weights, though it loses next to nothing of the weights.
    """
    stored, exact = stored.detach().cpu(), exact.detach().to("cpu", torch.float32)
    rounded = exact.to(stored.dtype)
    lost, update = ((each.double() - exact.double()).norm() for each in (rounded, stored))
    return rounded if lost <= MOST_LOST * update else exact


def changed_tensors(
    stored: Mapping[str, Tensor], values: Mapping[str, Tensor], deltas: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The `stored` tensors of a model with `values` in the place of some, and `deltas` added to some in float32.

    What is changed is as `trained_tensor` says, all else as it was stored. Raises ValueError for names and shapes that
    the stored model does not have.
    """
    state = dict(stored)
    for name, given in (*values.items(), *deltas.items()):
        if name not in stored or stored[name].shape != given.shape:
            raise ValueError(f"{name} {list(given.shape)} is no tensor of the stored model")
        exact = given.detach().to("cpu", torch.float32)
        state[name] = trained_tensor(stored[name], exact + stored[name].float() if name in deltas else exact)
    return state
