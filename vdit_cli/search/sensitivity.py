"""What each candidate mask does to each layer, measured once: from it any plan is chosen, without the model. No torch.

`loss[layer][mask][prompt][step]` is e_l(mask) = mean over tokens, heads and channels of (O_mask - O_dense)^2, O the
attention's output on the dense model's own queries, keys and values: the loss of Algorithm 1 of arXiv 2502.06155.
`relative` is that over the mean of O_dense^2, `output` the error of the model's final output when only this layer has
this mask [ours]. Letters: F latent frames, L layers, M masks, P prompts with a seed each, S steps.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.atomic import write_text
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.artifacts.json_object import brief, check_keys, parse, read_text
from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.search.candidates import in_order
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan_json import read_architecture, read_grid, read_mask

SCHEMA = "evdit.sensitivity/1"
FILE = "sensitivity.json"
KIND = "sensitivity table"
SCORES = {"attention": "loss", "relative": "relative", "output": "output"}
"""The scores that a plan is chosen by, and their keys in the file; `output` need not have been measured."""
NEEDED = ("attention", "relative")
TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "schema": ((str,), "a text"),
    "model": ((str,), "a text"),
    "backbone": ((str,), "a text"),
    "weights": ((str, type(None)), "a text or null"),
    "architecture": ((dict,), "an object"),
    "grid": ((dict,), "an object"),
    "masks": ((list,), "a list"),
    "prompts": ((list,), "a list"),
    "steps": ((list,), "a list"),
    "timesteps": ((list,), "a list"),
    "settings": ((dict,), "an object"),
    **dict.fromkeys(SCORES.values(), ((list,), "a list")),
    "digest": ((str,), "a text"),
}
"""Every key of the file, the types that its value may have, and their name."""


@dataclass(frozen=True, eq=False)
class SensitivityTable:
    """The losses of all candidate masks in all layers; two tables are equal where their digests are.

    `masks` go from the full one to the sparsest (`candidates.in_order`). `prompts` are (prompt, seed), `steps` places
    on the trajectory and `timesteps` the model's own times there. `losses` are float64 (L, M, P, S) by the name of a
    score, 0 or more, finite, and exactly 0 for the full mask. `weights` is the digest of the weights, `settings` what
    else decided the numbers as plain JSON. Raises ValueError for a table that is none, with the place.
    """

    model: str
    backbone: str
    weights: str | None
    architecture: Architecture
    grid: VideoGrid
    masks: tuple[TileMask, ...]
    prompts: tuple[tuple[str, int], ...]
    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    losses: Mapping[str, np.ndarray]
    settings: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None

    def __post_init__(self) -> None:
        """Refuse what does not go together, and keep the losses as arrays that nobody changes."""
        if self.masks != in_order(self.masks, self.grid.frames):
            raise ValueError("masks: they must go from the full one to the sparsest, each once")
        if not self.prompts or not self.steps or len(self.steps) != len(self.timesteps):
            raise ValueError("steps: at least one prompt and one step are needed, and a timestep for each step")
        if missing := [name for name in NEEDED if name not in self.losses]:
            raise ValueError(f"{SCORES[missing[0]]}: it is missing")
        losses = {name: np.array(self.losses[name], np.float64) for name in SCORES if name in self.losses}
        for name, values in losses.items():
            self._check(SCORES[name], values)
            values.setflags(write=False)
        object.__setattr__(self, "losses", losses)

    def _check(self, key: str, loss_LMPS: np.ndarray) -> None:
        """Raises ValueError where the losses of one score are not of the table's shape, or no losses."""
        sizes = {"layer": self.architecture.layers, "mask": len(self.masks)}
        sizes |= {"prompt": len(self.prompts), "step": len(self.steps)}
        if loss_LMPS.shape != tuple(sizes.values()):
            shape = " x ".join(f"{size} {name}s" for name, size in sizes.items())
            raise ValueError(f"{key}: it is of {loss_LMPS.shape}, not of {shape}")
        is_wrong = ~((loss_LMPS >= 0) & (loss_LMPS < np.inf))
        is_wrong[:, 0] |= loss_LMPS[:, 0] != 0
        if is_wrong.any():
            place = tuple(int(i) for i in np.argwhere(is_wrong)[0])
            told = " ".join(f"{name} {i}" for name, i in zip(sizes, place, strict=True))
            rule = "it must be 0, the full mask changes nothing" if place[1] == 0 else "it must be 0 or more and finite"
            raise ValueError(f"{key} {told}: {loss_LMPS[place]} is no loss: {rule}")
        with np.errstate(over="ignore"):
            if not np.isfinite(loss_LMPS.sum()):
                raise ValueError(f"{key}: its sum is beyond what a number can hold")

    def mean(self, by: str) -> np.ndarray:
        """Mean loss (L, M) over prompts and steps, by the score `by`. Raises EvditError where it was not measured."""
        return self.of_prompts(by).mean(axis=2)

    def of_prompts(self, by: str) -> np.ndarray:
        """Mean loss (L, M, P) over steps, by the score `by`. Raises EvditError where it was not measured."""
        if by not in SCORES:
            raise unknown_name("score", by, SCORES, "--by", "--by")
        if by not in self.losses:
            raise EvditError(
                f"the score {by!r} was not measured: the table has {', '.join(self.losses)}",
                where=f"--by {by}",
                next_steps=[f"--by {name}" for name in self.losses],
            )
        return self.losses[by].mean(axis=3)

    @property
    def digest(self) -> str:
        """SHA-256 of the content."""
        return content_digest(self.content())

    def content(self) -> dict[str, Any]:
        """The table as plain JSON values, without its digest."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "backbone": self.backbone,
            "weights": self.weights,
            "architecture": asdict(self.architecture),
            "grid": asdict(self.grid),
            "masks": [{"mask": mask.name, "global_frames": list(mask.global_frames)} for mask in self.masks],
            "prompts": [{"prompt": prompt, "seed": seed} for prompt, seed in self.prompts],
            "steps": list(self.steps),
            "timesteps": [float(timestep) for timestep in self.timesteps],
            "settings": dict(self.settings),
            **{SCORES[name]: values.tolist() for name, values in self.losses.items()},
        }

    def write(self, path: Path | str) -> Path:
        """Write the table to the file `path`, or as sensitivity.json into the folder `path`: a line a key.

        Returns the file. Raises EvditError where it can't be written, ValueError for NaN in `settings`.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        content = {**self.content(), "digest": self.digest}
        lines = [f"  {json.dumps(key)}: {json.dumps(content[key], ensure_ascii=False)}" for key in content]
        write_text(file, "{\n" + ",\n".join(lines) + "\n}\n")
        return file

    @classmethod
    def read(cls, path: Path | str) -> SensitivityTable:
        """The table in the file `path`, or in sensitivity.json of the run folder `path`.

        Raises EvditError, naming file and place, for whatever is not a whole table with the digest of its content.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        origin = str(file)
        document = parse(read_text(file, KIND), origin, KIND)
        if document.get("schema") != SCHEMA:
            raise EvditError(
                f"unknown schema {brief(document.get('schema'))}: a {KIND} of this version is {SCHEMA!r}",
                where=origin,
                next_steps=["the folder of a run of `evdit search-masks`", "a newer evdit"],
            )
        check_keys(document, tuple(key for key in TYPES if key != "output"), ("output",), origin, KIND)
        for key, value in document.items():
            types, named = TYPES[key]
            if not isinstance(value, types):
                raise EvditError(f"{key} is {brief(value)}: it must be {named}", where=f"{origin} {key}")
        table = _table_of(document, origin)
        sealed = content_digest({key: value for key, value in document.items() if key != "digest"})
        if document["digest"] != sealed:
            raise EvditError(
                f"the {KIND} has digest {brief(document['digest'])}, its content {sealed[:12]}: it was changed",
                where=f"{origin} digest",
                next_steps=["the file as the search wrote it"],
            )
        return table


def _table_of(document: dict[str, Any], origin: str) -> SensitivityTable:
    """The table of a document whose keys are of the right types. Raises EvditError for values that are none."""
    architecture = read_architecture(document["architecture"], len(document["loss"]), f"{origin} architecture", KIND)
    assert architecture is not None, "it is an object"
    grid = read_grid(document["grid"], f"{origin} grid", KIND)
    masks = [read_mask(each, grid, f"{origin} mask {i}", KIND) for i, each in enumerate(document["masks"])]
    prompts = [_read_prompt(each, f"{origin} prompt {i}") for i, each in enumerate(document["prompts"])]
    for i, step in enumerate(document["steps"]):
        if type(step) is not int or step < 0:
            raise EvditError(f"{brief(step)} is no step: it must be a whole number", where=f"{origin} steps {i}")
    sizes = (architecture.layers, len(masks), len(prompts), len(document["steps"]))
    timesteps = _numbers(document["timesteps"], f"{origin} timesteps", sizes[3:])
    losses = {name: _losses(document[key], sizes, f"{origin} {key}") for name, key in SCORES.items() if key in document}
    try:
        return SensitivityTable(
            document["model"],
            document["backbone"],
            document["weights"],
            architecture,
            grid,
            tuple(masks),
            tuple(prompts),
            tuple(document["steps"]),
            tuple(timesteps),
            losses,
            document["settings"],
            origin,
        )
    except ValueError as error:
        place, _, why = str(error).partition(": ")
        raise EvditError(f"not a {KIND}: {why}", where=f"{origin} {place}") from error


def _read_prompt(value: Any, origin: str) -> tuple[str, int]:
    """A prompt and its seed. Raises EvditError for another value."""
    if not isinstance(value, dict):
        raise EvditError(f"{brief(value)} is no prompt: it must be an object", where=origin)
    check_keys(value, ("prompt", "seed"), (), origin, KIND)
    if not isinstance(value["prompt"], str) or type(value["seed"]) is not int:
        raise EvditError(f"{brief(value)} is no prompt: it needs a text and a whole seed", where=origin)
    return value["prompt"], value["seed"]


AXES = ("layer", "mask", "prompt", "step")


def _losses(value: list[Any], sizes: tuple[int, ...], origin: str) -> np.ndarray:
    """The nested lists of numbers as an array of these sizes (L, M, P, S). Raises EvditError with the place."""
    return np.array(list(_numbers(value, origin, sizes))).reshape(sizes)


def _numbers(value: Any, origin: str, sizes: tuple[int, ...]) -> Iterator[float]:
    """The numbers in nested lists of these sizes, the last of AXES. Raises EvditError for other values and lengths."""
    if not sizes:
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= 1e308:
            raise EvditError(f"{brief(value)} is no number that a table holds", where=origin)
        yield float(value)
        return
    axis = AXES[-len(sizes)]
    if not isinstance(value, list) or len(value) != sizes[0]:
        told = f"{len(value)} are listed" if isinstance(value, list) else f"it is {brief(value)}"
        raise EvditError(f"{told}: there must be one for each of {sizes[0]} {axis}s", where=origin)
    for i, each in enumerate(value):
        yield from _numbers(each, f"{origin} {axis} {i}", sizes[1:])
