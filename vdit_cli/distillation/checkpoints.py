"""Training states on disk: one folder a checkpoint, written beside and renamed, safetensors and JSON only.

checkpoints/step-000500/ model.safetensors  average.safetensors  optimiser-0.safetensors  state.json
Of a sharded model:      shard-*.safetensors with all three, a file a rank, and state.json
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from safetensors import SafetensorError
from torch import Tensor

from vdit_cli.artifacts.atomic import replacing, write_json
from vdit_cli.artifacts.digest import content_digest, file_digest, file_digests
from vdit_cli.artifacts.tensors import opened
from vdit_cli.backbones.tensor_file import write_tensors
from vdit_cli.distillation.sharded_state import read_shares, write_shares
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.parallel.sharding import is_sharded, local
from vdit_cli.reader import Amount, read_object

NAME = re.compile(r"step-\d{6,}")
SCHEMA = "evdit.training-state/2"
STATE = "state.json"
DAMAGE = (EvditError, OSError, ValueError, TypeError, SafetensorError)
"""What reading a damaged checkpoint may raise."""


@dataclass(frozen=True)
class OptimiserForm:
    """What JSON holds of an optimiser's state."""

    values: dict[str, dict[str, Any]]
    param_groups: list[dict[str, Any]]


@dataclass(frozen=True)
class StateForm:
    """A state.json; that of an older evdit knows the sizes of its files in place of their digests."""

    schema: Literal["evdit.training-state/2", "evdit.training-state/1"]
    iteration: Annotated[int, Ge(0)]
    seconds: Amount
    optimisers: list[OptimiserForm]
    sharded: bool = False
    files: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    digest: str = ""


@dataclass
class TrainingState:
    """All that decides the next iteration: the model, its moving average, its optimisers, and where they stand."""

    iteration: int
    seconds: float
    model: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimisers: list[dict[str, Any]]


def _split_optimiser(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state_dict as tensors (key `<parameter>.<name>`) and JSON values.

    States of 8 bits stand in a dict of their own, `<parameter>.<name>/<inner name>`, and share their tables of values,
    which safetensors refuses: each gets its own.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for index, slots in state["state"].items():
        for name, value in _opened(slots):
            if not isinstance(value, Tensor):
                values.setdefault(str(index), {})[name] = value
                continue
            shared = "/" in name and value.data_ptr() in seen
            tensors[f"{index}.{name}"] = value.detach().clone() if shared else value.detach().contiguous()
            if "/" in name:
                seen.add(value.data_ptr())
    return tensors, {"values": values, "param_groups": state["param_groups"]}


def _opened(slots: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in slots.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def _join_optimiser(tensors: dict[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    """The state_dict that `_split_optimiser` took apart."""
    state: dict[int, dict[str, Any]] = {}
    named: list[tuple[str, str, Any]] = []
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        named.append((index, name, tensor))
    named += [(index, name, value) for index, slots in rest["values"].items() for name, value in slots.items()]
    for index, name, value in named:
        slots = state.setdefault(int(index), {})
        outer, is_inner, inner = name.partition("/")
        if is_inner:
            slots.setdefault(outer, {})[inner] = value
        else:
            slots[name] = value
    return {"state": state, "param_groups": rest["param_groups"]}


def _parts(state: TrainingState) -> tuple[dict[str, dict[str, Tensor]], list[dict[str, Any]]]:
    """The tensors of a state by part (model, average, optimiser-0, ...), and what of the optimisers JSON can hold."""
    optimisers = [_split_optimiser(each) for each in state.optimisers]
    parts = {"model": state.model, "average": state.average}
    plain = {part: {key: value.detach().contiguous() for key, value in each.items()} for part, each in parts.items()}
    plain |= {f"optimiser-{number}": tensors for number, (tensors, _) in enumerate(optimisers)}
    return plain, [rest for _, rest in optimisers]


def save_checkpoint(folder: Path, state: TrainingState, ranks: Ranks = ALONE) -> Path:
    """Write `folder/step-NNNNNN` whole or not at all, with a digest of each file.

    Of a model that every rank holds whole the first one writes; of a sharded model each writes its share. All ranks
    must call. Raises EvditError (exit 1) for a full disk and for what is not finite; the checkpoints before stay.
    """
    final = checkpoint_place(folder, state.iteration)
    parts, rests = _parts(state)
    broken = [f"{part}.{key}" for part, all_ in parts.items() for key, each in all_.items() if not _is_finite(each)]
    if ranks.any(bool(broken))[0]:
        raise EvditError(
            f"{broken[0] if broken else 'a tensor of another rank'} is not finite after iteration {state.iteration}: "
            f"nothing of it is saved; {what_is_kept(newest_iteration(folder))}",
            where=str(folder),
            next_steps=["a smaller learning rate", "another seed, in a new folder"],
            exit_code=FAILED,
        )
    sharded = is_sharded(state.model.values())
    with replacing(final) if ranks.is_first else nullcontext(final) as beside:
        if ranks.is_first:
            beside.mkdir()
        if sharded:
            place = Path(ranks.from_first(lambda: str(beside)))
            write_shares({f"{part}.{key}": each for part, all_ in parts.items() for key, each in all_.items()}, place)
        elif ranks.is_first:
            for part, tensors in parts.items():
                write_tensors(tensors, beside / f"{part}.safetensors")
        if ranks.is_first:
            content = {"schema": SCHEMA, "iteration": state.iteration, "seconds": state.seconds, "optimisers": rests}
            content |= {"sharded": sharded, "files": file_digests(beside)}
            write_json(beside / STATE, {**content, "digest": content_digest(content)})
    ranks.wait()
    return final


def drop_older(folder: Path, keep_last: int, ranks: Ranks = ALONE) -> None:
    """Remove all but the newest `keep_last` checkpoints; what somebody keeps elsewhere, behind a link, is not ours."""
    if ranks.is_first:
        for old in list_checkpoints(folder)[:-keep_last]:
            if not old.is_symlink():
                shutil.rmtree(old)
    ranks.wait()


def checkpoint_place(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of that iteration stands."""
    return folder / f"step-{iteration:06d}"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(local(tensor).isfinite().all())


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders below `folder`, oldest first; one that somebody copied to another name is none."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_iteration(folder: Path) -> int:
    """The iteration of the newest checkpoint in `folder` that is not damaged, 0 without one; reads its files."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return int(_checked_state(path)["iteration"])
        except DAMAGE:
            continue
    return 0


def what_is_kept(done: int) -> str:
    """What is left of a training that broke off, whose newest whole checkpoint is of iteration `done`, in words."""
    if not done:
        return "nothing was saved yet: the same command begins from the start"
    return f"the checkpoint of iteration {done} is kept"


def check_goes_on(folder: Path, done: int, iterations: int, was_done: bool = False) -> None:
    """Raise EvditError (2) where the newest whole checkpoint in `folder`, of iteration `done`, leaves nothing to do.

    That is with the values insisted on. Also where there is none, though the training `was_done`: it would begin from
    nothing.
    """
    if was_done and not done:
        raise EvditError(
            f"{folder} holds no whole checkpoint any more: the finished training can't be made longer",
            where="--allow-changed",
            next_steps=["a new folder with -o, and --checkpoint with this one"],
        )
    if done >= iterations:
        raise EvditError(
            f"{checkpoint_place(folder, done)} has {done} of {iterations} iterations: with other values nothing would "
            "be left to train",
            where="--allow-changed",
            next_steps=["more iterations", "a new folder with -o"],
        )


def load_checkpoint(path: Path, device: torch.device | str, like: Mapping[str, Tensor] | None = None) -> TrainingState:
    """Read one checkpoint folder. Raises one of DAMAGE where it is damaged.

    `like` are tensors by part and name ("model.proj.weight", "optimiser-0.3.exp_avg"): a sharded checkpoint's tensors
    are split as they are, so that no rank reads it whole. All ranks must read.
    """
    state = _checked_state(path)
    names = ["model", "average", *(f"optimiser-{number}" for number in range(len(state["optimisers"])))]
    if state.get("sharded"):
        tensors = read_shares(path, like or {}, device)
        parts = {part: _below(tensors, part) for part in names}
    else:
        parts = {part: _tensors(path / f"{part}.safetensors", device) for part in names}
    optimisers = [
        _join_optimiser(parts[f"optimiser-{number}"], rest) for number, rest in enumerate(state["optimisers"])
    ]
    return TrainingState(state["iteration"], state["seconds"], parts["model"], parts["average"], optimisers)


def _tensors(file: Path, device: torch.device | str) -> dict[str, Tensor]:
    with opened(file, "pt", str(device)) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.offset_keys()}


def _checked_state(path: Path) -> dict[str, Any]:
    """What state.json of a checkpoint says, once its own digest and those of the files beside it are right."""
    state = read_object(StateForm, path / STATE, "checkpoint's state")
    if state["schema"] != SCHEMA:
        for name, size in state.get("bytes", {}).items():
            if (path / name).stat().st_size != size:
                raise ValueError(f"{name} has {(path / name).stat().st_size} bytes of {size}")
        return state
    if content_digest({key: value for key, value in state.items() if key != "digest"}) != state.get("digest"):
        raise ValueError(f"{STATE} is not what was written: its digest differs")
    for name, digest in state.get("files", {}).items():
        if file_digest(path / name) != digest:
            raise ValueError(f"{name} is not what was written: its digest differs")
    return state


def _below(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(part + "."): value for key, value in tensors.items() if key.startswith(part + ".")}


def newest_checkpoint(
    folder: Path,
    device: torch.device | str,
    like: Mapping[str, Tensor] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[TrainingState | None, list[str]]:
    """The newest checkpoint that every rank can read, or None, and a line for each newer one that is damaged."""
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        state, why = None, "another rank can't read it"
        try:
            state = load_checkpoint(path, device, like)
        except DAMAGE as problem:
            why = str(problem)
        if not ranks.any(state is None)[0]:
            return state, damaged
        damaged.append(f"checkpoint {path.name} is damaged ({why}): going back to the one before it")
    return None, damaged
