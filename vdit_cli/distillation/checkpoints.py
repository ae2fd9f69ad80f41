"""Training states on disk: one folder a checkpoint, written beside and renamed, safetensors and JSON only.

checkpoints/step-000500/ model.safetensors  average.safetensors  optimiser-0.safetensors  state.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vdit_cli.artifacts.atomic import replacing, write_json
from vdit_cli.backbones.open_sora_plan.loading import write_tensors

SCHEMA = "evdit.training-state/1"


@dataclass
class TrainingState:
    """All that decides the next iteration: the model, its moving average, its optimisers, and where they stand."""

    iteration: int
    seconds: float
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimisers: list[dict[str, Any]]


def _split_optimiser(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state_dict as tensors (key `<parameter>.<name>`) and JSON values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, slots in state["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                values.setdefault(str(index), {})[name] = value
    return tensors, {"values": values, "param_groups": state["param_groups"]}


def _join_optimiser(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The state_dict that `_split_optimiser` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    for index, slots in rest["values"].items():
        state.setdefault(int(index), {}).update(slots)
    return {"state": state, "param_groups": rest["param_groups"]}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def save_checkpoint(folder: Path, state: TrainingState, keep_last: int) -> Path:
    """Write `folder/step-NNNNNN` whole or not at all, then drop all but the newest `keep_last` checkpoints.

    Raises EvditError (exit 1) for a full disk; the checkpoints before stay.
    """
    final = folder / f"step-{state.iteration:06d}"
    with replacing(final) as beside:
        beside.mkdir()
        write_tensors(_contiguous(state.model), beside / "model.safetensors")
        write_tensors(_contiguous(state.average), beside / "average.safetensors")
        rests = []
        for number, optimiser in enumerate(state.optimisers):
            tensors, rest = _split_optimiser(optimiser)
            write_tensors(tensors, beside / f"optimiser-{number}.safetensors")
            rests.append(rest)
        write_json(
            beside / "state.json",
            {"schema": SCHEMA, "iteration": state.iteration, "seconds": state.seconds, "optimisers": rests},
        )
    for old in list_checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders below `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def load_checkpoint(path: Path, device: torch.device | str) -> TrainingState:
    """Read one checkpoint folder. Raises OSError, ValueError or SafetensorError where it is damaged."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {state.get('schema')!r} is not {SCHEMA}")
    optimisers = [
        _join_optimiser(load_file(path / f"optimiser-{number}.safetensors", device=str(device)), rest)
        for number, rest in enumerate(state["optimisers"])
    ]
    model = load_file(path / "model.safetensors", device=str(device))
    average = load_file(path / "average.safetensors", device=str(device))
    return TrainingState(state["iteration"], state["seconds"], model, average, optimisers)


def newest_checkpoint(folder: Path, device: torch.device | str) -> tuple[TrainingState | None, list[str]]:
    """The newest readable checkpoint, or None, and a line for each newer one that is damaged."""
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path, device), damaged
        except (OSError, ValueError, KeyError, SafetensorError) as problem:
            damaged.append(f"checkpoint {path.name} is damaged ({problem}): going back to the one before it")
    return None, damaged
