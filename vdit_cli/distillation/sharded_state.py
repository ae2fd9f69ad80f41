"""Training states of sharded models: every rank writes and reads its own share, as safetensors with their offsets.

`torch.distributed.checkpoint` joins the shares, so a state written on some number of ranks is read on any other.
Its Hugging Face storage is used because its default metadata is a pickle.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def write_shares(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write this rank's share of `tensors` into `folder`; all ranks must write. Raises OSError for a full disk."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer, no_dist=not dist.is_initialized())
    except CheckpointException as failed:
        raise _cause(failed) from failed


def read_shares(folder: Path, like: Mapping[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    """All tensors in `folder`: those in `like` split as their twins there, the others whole, on `device`.

    Nothing of `like` is written to. All ranks must read. Raises OSError, ValueError or SafetensorError for damage.
    """
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    places: dict[str, Tensor] = {}
    for name, facts in stored.items():
        if not isinstance(facts, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        twin = like.get(name)
        if twin is not None and twin.shape == facts.size:
            places[name] = torch.empty_like(twin, dtype=facts.properties.dtype, requires_grad=False)
        else:
            places[name] = torch.empty(facts.size, dtype=facts.properties.dtype, device=device)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process is meant
            dcp.load(places, storage_reader=reader, no_dist=not dist.is_initialized())
    except CheckpointException as failed:
        raise _cause(failed) from failed
    return places


def _cause(failed: CheckpointException) -> Exception:
    """What one of the ranks met: a full or unreadable disk, else a ValueError with the first rank's words."""
    causes = [failure[0] for failure in failed.failures.values()]
    for cause in causes:
        number = re.search(r"os error (\d+)", str(cause))  # safetensors tells a full disk only in words
        if isinstance(cause, OSError):
            return cause
        if number:
            return OSError(int(number[1]), os.strerror(int(number[1])))
    return ValueError(str(causes[0]) if causes else str(failed))
