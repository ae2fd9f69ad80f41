"""Configs and weights of a model folder: strict reading, and writing that never leaves half a file.

A folder holds config.json and either one safetensors file or shards beside an `*.safetensors.index.json`, as diffusers
and transformers write them. Tensors are mapped from the file, so reading needs no second copy in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from vdit_cli.artifacts.atomic import replacing, write_json
from vdit_cli.artifacts.tensors import FLOATS, Stored, opened, stored
from vdit_cli.backbones.open_sora_plan.foreign import no_weights, other_weights
from vdit_cli.backbones.tensor_file import write_tensors
from vdit_cli.errors import ENVIRONMENT, EvditError
from vdit_cli.reader import advising, read_object

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
STEMS = (STEM, "model")
"""Names of weight files without their endings: diffusers', then transformers'."""
MAX_SHARD_BYTES = 5_000_000_000
NAMED = 3
"""Of wrong keys so many are named; the rest is counted."""


AGAIN = ["fetch the folder's files again"]


@dataclass(frozen=True)
class WeightIndex:
    """What an index of shards must hold: the file of each tensor."""

    weight_map: dict[str, str]


Change = Callable[[str, Tensor], Tensor]
"""What is made of a stored tensor of that key as it is loaded."""


def unchanged(key: str, stored: Tensor) -> Tensor:
    """The tensor as it is stored."""
    return stored


def read_config(folder: Path | str) -> dict[str, Any]:
    """The JSON object in `folder`/config.json.

    Raises EvditError (exit 3) when it is missing or is no JSON object.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise _broken(f"{path} is missing: a model folder holds {CONFIG} and safetensors weights")
    with advising(AGAIN, ENVIRONMENT):
        return read_object(dict[str, Any], path, "model's config")


def lasting(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what says only who wrote it or where: private keys, versions and number formats."""
    passing = ("transformers_version", "torch_dtype", "dtype")
    return {key: value for key, value in config.items() if not key.startswith("_") and key not in passing}


def weight_files(folder: Path | str) -> list[Path]:
    """The safetensors files that together hold the weights in `folder`: one file, or the shards of its index.

    Raises EvditError (exit 3) when there are none, or when an index is damaged, leaves the folder or names a file that
    is not there.
    """
    folder = Path(folder)
    found = _entry(folder)
    if found is not None:
        return _indexed(found) if found.suffix == ".json" else [found]
    if others := other_weights(folder):
        return others
    raise no_weights(folder, f"{STEM}.safetensors")


def has_weights(folder: Path | str) -> bool:
    """Whether `weight_files` finds safetensors weights in `folder`: other files that end so are none."""
    return _entry(Path(folder)) is not None or bool(other_weights(Path(folder)))


def read_state(folder: Path | str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Every tensor in `folder`'s weights by its key, in the stored type; on the CPU they are mapped, not copied.

    Raises EvditError (exit 3) for missing or damaged files.
    """
    return {key: tensor for path in weight_files(folder) for key, tensor in read_tensors(path, device)}


def read_tensors(path: Path, device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Keys and tensors of one safetensors file, one at a time.

    Raises EvditError (exit 3) when the file is damaged.
    """
    with opened(path, "pt", str(device)) as file:
        for key in file.keys():  # noqa: SIM118  a safetensors file is no mapping
            yield key, file.get_tensor(key)


def stored_shapes(folder: Path | str, whole: Collection[str] | None = None) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor, from the headers alone.

    Raises EvditError (exit 3) for missing or damaged files, and for weights of whole numbers that are not in `whole`.
    """
    tensors: dict[str, Stored] = {}
    for path in weight_files(folder):
        with opened(path) as file:
            tensors |= stored(file)
    if whole is not None:
        check_floats({key: each.dtype for key, each in tensors.items() if each.dtype not in FLOATS}, folder, whole)
    return {key: each.shape for key, each in tensors.items()}


def check_floats(others: Mapping[str, object], folder: Path | str, whole: Collection[str] = ()) -> None:
    """Raise EvditError (exit 3) for weights of `others` types than floating point, unless they are in `whole`."""
    odd = [f"{key} {dtype}" for key, dtype in others.items() if key not in whole]
    if odd:
        raise _broken(f"the weights in {folder} are not of floating point: {_listed(odd)}")


def load_strict(
    module: nn.Module,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    change: Change = unchanged,
) -> None:
    """Put `folder`'s weights into `module`, whose own parameters are replaced and may be on the meta device.

    `dtype` (None: as stored) is that of floating-point weights afterwards; before, `change` makes of each stored tensor
    what is loaded.
    Raises EvditError (exit 3) for damaged files and, before any weight is read, for missing, unknown or misshapen keys.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    whole = [key for key, value in module.state_dict().items() if not value.is_floating_point()]
    check_keys(wanted, stored_shapes(folder, whole), type(module).__name__, folder)
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for key, read in read_tensors(path, device):
            tensor = change(key, read)
            state[key] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    module.load_state_dict(state, strict=True, assign=True)


def check_keys(
    wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], model: str, folder: Path | str
) -> None:
    """Raise EvditError (exit 3), naming the first few, unless `stored` has exactly the keys and shapes of `wanted`."""
    misshapen = [
        f"{key} {list(stored[key])} instead of {list(shape)}"
        for key, shape in wanted.items()
        if key in stored and stored[key] != shape
    ]
    faults = [
        _counted("missing", [key for key in wanted if key not in stored]),
        _counted("unknown", [key for key in stored if key not in wanted]),
        _counted("misshapen", misshapen),
    ]
    if any(faults):
        raise _broken(f"the weights in {folder} do not fit {model}: {'; '.join(filter(None, faults))}")


def save_weights(
    module: nn.Module,
    folder: Path | str,
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `module`'s weights and `config` to `folder`, each file whole or not at all.

    Floating-point weights become `dtype` if given. More than `max_shard_bytes` are split over several files, an index
    beside them; weight files of an earlier save that no longer belong are removed. Each file also holds the config and
    `metadata`.
    """
    write_state(module.state_dict(), folder, config, dtype, max_shard_bytes, metadata)


def write_state(
    state: Mapping[str, Tensor],
    folder: Path | str,
    config: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the tensors of a state_dict and `config` to `folder`, as `save_weights` does those of a module."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {key: value.numel() * _stored_type(value, dtype).itemsize for key, value in state.items()}
    shards = _split(sizes, max_shard_bytes)
    names = [f"{STEM}.safetensors"]
    told = {"config": json.dumps(dict(config)), **(metadata or {}), "format": "pt"}
    if len(shards) > 1:
        names = [f"{STEM}-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: state[key].detach().to("cpu", _stored_type(state[key], dtype)).contiguous() for key in keys}
        with replacing(folder / name) as partial:
            write_tensors(tensors, partial, told)
    index = folder / f"{STEM}.safetensors.index.json"
    if len(shards) > 1:
        places = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        write_json(index, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
        names.append(index.name)
    write_json(folder / CONFIG, dict(config))
    for stale in folder.glob(f"{STEM}*.safetensors*"):
        if stale.name not in names:
            stale.unlink()


def _entry(folder: Path) -> Path | None:
    """The file or index that the weights in `folder` are read by: files first, then indexes."""
    names = [f"{stem}.safetensors{ending}" for ending in ("", ".index.json") for stem in STEMS]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _stored_type(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and value.is_floating_point() else value.dtype


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for key, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(key)
        filled += size
    return shards


def _indexed(index: Path) -> list[Path]:
    with advising(AGAIN, ENVIRONMENT):
        names = sorted(set(read_object(WeightIndex, index, "index of weights")["weight_map"].values()))
    for name in names:
        # Checked as text: a hub's cache holds symbolic links that do lead out of the folder.
        if not name.endswith(".safetensors") or PurePosixPath(name).name != name or {"\\", ":"} & set(name):
            raise _broken(f"{index} names {name!r}: a shard is a safetensors file in the same folder")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise _broken(f"{index} names files that are not there: {_listed(absent)}")
    return [index.parent / name for name in names]


def _counted(fault: str, names: list[str]) -> str:
    return f"{len(names)} {fault} ({_listed(names)})" if names else ""


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _broken(what: str) -> EvditError:
    return EvditError(what, next_steps=AGAIN, exit_code=ENVIRONMENT)
