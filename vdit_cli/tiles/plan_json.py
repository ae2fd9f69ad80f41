"""The plan file: from its bytes to checked values. Everything that is not a whole, consistent plan is refused here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.digest import content_digest
from vdit_cli.artifacts.json_object import brief, check_keys
from vdit_cli.errors import EvditError, quoted
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

SCHEMA = "evdit.mask-plan/2"
PLAN_FILE = "plan.json"
PLACES = (PLAN_FILE, f"student/{PLAN_FILE}", f"steps-*/student/{PLAN_FILE}")
"""Where a run keeps its plan: a search beside run.json, a distillation in its students' folders, each the same."""
KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "schema": ((str,), "a text"),
    "backbone": ((str,), "a text"),
    "architecture": ((dict, type(None)), "an object or null"),
    "layer_count": ((int,), "a whole number"),
    "grid": ((dict,), "an object"),
    "searched_on": ((str, type(None)), "a text or null"),
    "made_by": ((dict,), "an object"),
    "predicted": ((dict,), "an object"),
    "layers": ((list,), "a list"),
    "digest": ((str,), "a text"),
}
"""Every key of a plan, the types that its value may have, and their name."""

MASK_KEYS = ("mask", "global_frames")
ARCHITECTURE_KEYS = tuple(each.name for each in fields(Architecture))
GRID_KEYS = ("frames", "rows", "cols", "text_before", "text_after")


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
            next_steps=["the folder of a run that made a plan", "a plan file", "a mask name such as 1:7"],
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


def check_content(document: dict[str, Any], origin: str) -> tuple[Architecture | None, VideoGrid, tuple[TileMask, ...]]:
    """Architecture, grid and masks of a plan; the other keys are checked here, the digest is left to `check_seal`.

    Raises EvditError with the file, and the layer where there is one.
    """
    if document.get("schema") != SCHEMA:
        raise EvditError(
            f"unknown schema {document.get('schema')!r}: a plan of this version is {SCHEMA!r}",
            where=origin,
            next_steps=["a plan made by this version of evdit", "a newer evdit"],
        )
    check_keys(document, tuple(key for key in KEYS if key != "digest"), ("digest",), origin)
    for key, value in document.items():
        types, name = KEYS[key]
        if not isinstance(value, types) or isinstance(value, bool):
            raise EvditError(f"{key} is {brief(value)}: it must be {name}", where=f"{origin} {key}")
    if document["layer_count"] != len(document["layers"]) or not document["layers"]:
        raise EvditError(
            f"layer_count is {document['layer_count']} and {len(document['layers'])} layers are listed: "
            "a plan lists each of at least one layer",
            where=f"{origin} layers",
        )
    architecture = read_architecture(document["architecture"], document["layer_count"], f"{origin} architecture")
    grid = read_grid(document["grid"], f"{origin} grid")
    layers = enumerate(document["layers"])
    return architecture, grid, tuple(read_mask(layer, grid, f"{origin} layer {index}") for index, layer in layers)


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


def read_architecture(
    value: dict[str, Any] | None, layers: int, origin: str, kind: str = "plan"
) -> Architecture | None:
    """The architecture in JSON form, None for null. Raises EvditError for one that is none or of other layers."""
    if value is None:
        return None
    check_keys(value, ARCHITECTURE_KEYS, (), origin, kind)
    if not isinstance(value["transformer"], str):
        raise EvditError(f"transformer is {brief(value['transformer'])}: it must be a text", where=origin)
    for name in ARCHITECTURE_KEYS[1:]:
        if type(value[name]) is not int or value[name] < 1:
            raise EvditError(f"{name} is {brief(value[name])}: it must be a whole number above 0", where=origin)
    found = Architecture(**value)
    if found.layers != layers:
        raise EvditError(f"layers is {found.layers}: the {kind} lists {layers}", where=origin)
    return found


def read_grid(value: dict[str, Any], origin: str, kind: str = "plan") -> VideoGrid:
    """The grid in JSON form. Raises EvditError for sizes that are no grid."""
    check_keys(value, GRID_KEYS, (), origin, kind)
    try:
        return VideoGrid(**value)
    except ValueError as error:
        raise EvditError(str(error), where=origin) from error


def read_mask(value: Any, grid: VideoGrid, origin: str, kind: str = "plan") -> TileMask:
    """A mask, as of one layer: its global frames, which its name must agree with. Raises EvditError."""
    if not isinstance(value, dict):
        raise EvditError(f"the mask is {brief(value)}: it must be an object", where=origin)
    check_keys(value, MASK_KEYS, (), origin, kind)
    frames = value["global_frames"]
    if not isinstance(frames, list):
        raise EvditError(f"global_frames is {brief(frames)}: it must be a list of frame numbers", where=origin)
    try:
        mask = TileMask(grid.frames, tuple(frames))
    except (ValueError, TypeError) as error:
        raise EvditError(str(error), where=origin) from error
    if list(mask.global_frames) != frames:
        raise EvditError(f"global_frames {brief(frames)} are not in order: write them sorted", where=origin)
    if value["mask"] != mask.name:
        raise EvditError(
            f"mask {brief(value['mask'])} and global_frames {brief(frames)} disagree: these frames make {mask.name}",
            where=origin,
            next_steps=[f'"mask": "{mask.name}"', *_frames_of(value["mask"], grid.frames)],
        )
    return mask


def _frames_of(name: Any, frames: int) -> list[str]:
    """The global_frames that the mask called `name` has, as a line to paste; nothing where it names no mask."""
    try:
        mask = TileMask.parse(str(name), frames)
    except EvditError:
        return []
    return [f'"global_frames": {list(mask.global_frames)}']
