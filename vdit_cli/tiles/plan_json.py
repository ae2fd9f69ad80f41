"""The plan file: from its bytes to checked values. Everything that is not a whole, consistent plan is refused here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.digest import content_digest
from vdit_cli.errors import EvditError, brief, quoted
from vdit_cli.reader import Layers, check_schema, shaped
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

SCHEMA = "evdit.mask-plan/2"
PLAN_FILE = "plan.json"
PLACES = (PLAN_FILE, f"student/{PLAN_FILE}", f"steps-*/student/{PLAN_FILE}")
"""Where a run keeps its plan: a search beside run.json, a distillation in its students' folders, each the same."""


@dataclass(frozen=True)
class StoredMask:
    """A mask in JSON: its name, and the global frames that it must agree with."""

    mask: str
    global_frames: list[int]

    def on(self, grid: VideoGrid, origin: str) -> TileMask:
        """The mask over the frames of `grid`. Raises EvditError, with both ways out where name and frames disagree."""
        frames = self.global_frames
        try:
            mask = TileMask(grid.frames, tuple(frames))
        except ValueError as error:
            raise EvditError(str(error), where=origin) from error
        if list(mask.global_frames) != frames:
            raise EvditError(f"global_frames {brief(frames)} are not in order: write them sorted", where=origin)
        if self.mask != mask.name:
            raise EvditError(
                f"mask {brief(self.mask)} and global_frames {brief(frames)} disagree: these frames make {mask.name}",
                where=origin,
                next_steps=[f'"mask": "{mask.name}"', *_frames_of(self.mask, grid.frames)],
            )
        return mask


@dataclass(frozen=True)
class StoredPlan:
    """The keys of a plan file, and their types."""

    schema: str
    backbone: str
    architecture: Architecture | None
    layer_count: Layers
    grid: VideoGrid
    searched_on: str | None
    made_by: dict[str, Any]
    predicted: dict[str, Any]
    layers: list[StoredMask]
    digest: str | None = None

    def masks(self, origin: str) -> tuple[TileMask, ...]:
        """The mask of each layer. Raises EvditError where layers and their number do not go together."""
        if self.layer_count != len(self.layers):
            raise EvditError(
                f"layer_count is {self.layer_count} and {len(self.layers)} layers are listed: a plan lists each of at "
                "least one layer",
                where=f"{origin} layers",
            )
        check_layers(self.architecture, self.layer_count, origin, "plan")
        return tuple(layer.on(self.grid, f"{origin} layer {index}") for index, layer in enumerate(self.layers))


def check_layers(architecture: Architecture | None, layers: int, origin: str, kind: str) -> None:
    """Raises EvditError where a `kind` of file lists another number of layers than its architecture has."""
    if architecture is not None and architecture.layers != layers:
        raise EvditError(f"layers is {architecture.layers}: the {kind} lists {layers}", where=f"{origin} architecture")


def plan_file(path: Path) -> Path:
    """`path` itself, or where it is a run's folder the plan in it. Raises EvditError where there is none."""
    if not path.is_dir():
        return path
    found = [file for place in PLACES for file in sorted(path.glob(place)) if file.is_file()]
    if not found:
        raise EvditError(
            f"{path} holds no {PLAN_FILE}: a folder is taken as a plan when a search or a distillation wrote one into "
            "it",
            where=str(path),
            next_steps=["the folder of a run that made a plan", "a plan file"],
        )
    return found[0]


def without_architecture(document: dict[str, Any]) -> dict[str, Any]:
    """A plan of schema 1 as one of schema 2: it named a backbone, and no architecture is known."""
    return {**document, "schema": "evdit.mask-plan/2", "architecture": None}


UPGRADES: tuple[tuple[str, Callable[[dict[str, Any]], dict[str, Any]]], ...] = (
    ("evdit.mask-plan/1", without_architecture),
)
"""Older schemas in order, and what makes each the next one."""


def upgraded(document: dict[str, Any]) -> dict[str, Any]:
    """The JSON object of a plan in this version's schema; one that is of no older schema is left as it is."""
    for schema, upgrade in UPGRADES:
        document = upgrade(document) if document.get("schema") == schema else document
    return document


def read_stored(document: dict[str, Any], origin: str) -> StoredPlan:
    """The plan in a JSON object of this version's schema; its digest is left to `check_seal`. Raises EvditError."""
    check_schema(document, SCHEMA, origin, "plan")
    return shaped(StoredPlan, document, origin, "plan")


def check_seal(document: dict[str, Any], origin: str) -> None:
    """Raises EvditError where the digest of a plan is missing or is not that of its content."""
    content = {key: value for key, value in document.items() if key != "digest"}
    expected = content_digest(content)
    found = document.get("digest")
    if found != expected:
        told = "no digest" if found is None else f"digest {brief(found)}"
        raise EvditError(
            f"the plan has {told}, its content has {expected[:12]}: it was changed after it was sealed",
            where=f"{origin} digest",
            next_steps=[f"evdit masks seal {quoted(origin)}  (if you made the change)"],
        )


def _frames_of(name: str, frames: int) -> list[str]:
    """The global_frames that the mask called `name` has, as a line to paste; nothing where it names no mask."""
    try:
        mask = TileMask.parse(name, frames)
    except EvditError:
        return []
    return [f'"global_frames": {list(mask.global_frames)}']
