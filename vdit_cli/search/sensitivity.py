"""What each candidate mask does to each layer, measured once: from it any plan is chosen, without the model. No torch.

`loss[layer][mask][prompt][step]` is e_l(mask) = mean over tokens, heads and channels of (O_mask - O_dense)^2, O the
attention's output on the dense model's own queries, keys and values: the loss of Algorithm 1 of arXiv 2502.06155.
`relative` is that over the mean of O_dense^2, `output` the error of the model's final output when only this layer has
this mask [ours]. Letters: F latent frames, L layers, M masks, P prompts with a seed each, S steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.atomic import write_text
from vdit_cli.artifacts.changes import RUN_FILE
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.errors import EvditError, brief, quoted, unknown_name
from vdit_cli.reader import Index, advising, check_schema, parse, read_text, shaped
from vdit_cli.search.candidates import in_order
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan_json import StoredMask, check_layers

SCHEMA = "evdit.sensitivity/1"
FILE = "sensitivity.json"
KIND = "sensitivity table"
SCORES = {"attention": "loss", "relative": "relative", "output": "output"}
"""The scores that a plan is chosen by, and their keys in the file; `output` need not have been measured."""
NEEDED = ("attention", "relative")


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
        if file != Path(path) and not file.exists():
            how_far = f"evdit status {quoted(path)}  (how far a run is)"
            raise EvditError(
                f"{path} holds no {FILE}: a search that has ended leaves one",
                where=str(path),
                next_steps=[
                    how_far if (Path(path) / RUN_FILE).exists() else "the folder of a run of `evdit search-masks`"
                ],
            )
        origin = str(file)
        document = parse(read_text(file, KIND), origin, KIND)
        with advising(["the folder of a run of `evdit search-masks`"]):
            check_schema(document, SCHEMA, origin, KIND)
        table = shaped(StoredTable, document, origin, KIND).table(origin)
        sealed = content_digest({key: value for key, value in document.items() if key != "digest"})
        if document["digest"] != sealed:
            raise EvditError(
                f"the {KIND} has digest {brief(document['digest'])}, its content {sealed[:12]}: it was changed",
                where=f"{origin} digest",
                next_steps=["the file as the search wrote it"],
            )
        return table


@dataclass(frozen=True)
class StoredPrompt:
    """A prompt and its seed in JSON."""

    prompt: str
    seed: int


Losses = list[list[list[list[float]]]]


@dataclass(frozen=True)
class StoredTable:
    """The keys of the file, and their types."""

    schema: str
    model: str
    backbone: str
    weights: str | None
    architecture: Architecture
    grid: VideoGrid
    masks: list[StoredMask]
    prompts: list[StoredPrompt]
    steps: list[Index]
    timesteps: list[float]
    settings: dict[str, Any]
    loss: Losses
    relative: Losses
    digest: str
    output: Losses | None = None

    def table(self, origin: str) -> SensitivityTable:
        """The table. Raises EvditError, with the place, for what does not go together."""
        check_layers(self.architecture, len(self.loss), origin, KIND)
        masks = tuple(each.on(self.grid, f"{origin} mask {i}") for i, each in enumerate(self.masks))
        prompts = tuple((each.prompt, each.seed) for each in self.prompts)
        sizes = (self.architecture.layers, len(masks), len(prompts), len(self.steps))
        _check_sizes(self.timesteps, f"{origin} timesteps", sizes[3:])
        losses = {name: getattr(self, key) for name, key in SCORES.items() if getattr(self, key) is not None}
        for name, values in losses.items():
            _check_sizes(values, f"{origin} {SCORES[name]}", sizes)
        try:
            return SensitivityTable(
                self.model,
                self.backbone,
                self.weights,
                self.architecture,
                self.grid,
                masks,
                prompts,
                tuple(self.steps),
                tuple(self.timesteps),
                losses,
                self.settings,
                origin,
            )
        except ValueError as error:
            place, _, why = str(error).partition(": ")
            raise EvditError(f"not a {KIND}: {why}", where=f"{origin} {place}") from error


AXES = ("layer", "mask", "prompt", "step")


def _check_sizes(value: list[Any], origin: str, sizes: tuple[int, ...]) -> None:
    """Raise EvditError, with the place, where nested lists are not of these sizes, the last of AXES."""
    axis = AXES[-len(sizes)]
    if len(value) != sizes[0]:
        raise EvditError(f"{len(value)} are listed: there must be one for each of {sizes[0]} {axis}s", where=origin)
    for i, each in enumerate(value if sizes[1:] else ()):
        _check_sizes(each, f"{origin} {axis} {i}", sizes[1:])
