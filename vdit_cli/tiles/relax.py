"""A mask plan with another mask in some of its layers: a denser one where a student loses too much."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from vdit_cli.errors import EvditError
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.tiles.retarget import MadeOver, shares_told

DENSE = "dense"
"""What the full mask may be called, whatever the number of frames."""


def read_layers(texts: Sequence[str], count: int, where: str = "--layer") -> tuple[int, ...]:
    """The layers named in texts such as "7,9", each once, in order. Raises EvditError for what is none of `count`."""
    layers = set()
    for word in (word.strip() for text in texts for word in text.split(",")):
        if not re.fullmatch(r"\d{1,9}", word, re.ASCII) or int(word) >= count:
            what = f"{word!r} is no layer: layers are 0 to {count - 1}, several with commas between"
            raise EvditError(what, where=f"{where} {word}".strip(), next_steps=[f"{where} {count - 1}"])
        layers.add(int(word))
    return tuple(sorted(layers))


def relax(plan: MaskPlan, layers: Sequence[int], to: str) -> MadeOver:
    """The plan with the mask `to` ("4:4", or "dense") in `layers`, and all else as it was.

    What was predicted is left out, since it was of the masks before; `made_by` tells the plan that this one was made
    of. A sparser mask is taken, and said to be one. Raises EvditError for a mask of another number of frames than the
    plan's, and where every layer has it already.
    """
    frames = plan.grid.frames
    mask = TileMask.dense(frames) if to.strip() == DENSE else TileMask.parse(to, frames, where=f"--to {to}")
    changed = [layer for layer in layers if plan.masks[layer] != mask]
    if not changed:
        told = f"layer {layers[0]} has" if len(layers) == 1 else f"layers {', '.join(map(str, layers))} have"
        what = f"{told} the mask {mask.words} already: nothing would change"
        raise EvditError(what, where=plan.origin, next_steps=["another mask with --to", "another layer with --layer"])
    made_by = {
        "command": "masks relax",
        "plan": plan.digest,
        "layers": changed,
        "to": mask.name,
        "made_by": dict(plan.made_by),
    }
    masks = tuple(mask if layer in changed else old for layer, old in enumerate(plan.masks))
    made = replace(plan, masks=masks, made_by=made_by, predicted={}, origin=None)
    return MadeOver(made, plan, tuple(_changes(plan, made, layers)))


def _changes(old: MaskPlan, made: MaskPlan, layers: Sequence[int]) -> list[str]:
    """What becomes of each of the layers, the tiles of the whole plan, and what is no longer known, a line each."""
    lines = []
    for layer in layers:
        before, after = old.masks[layer], made.masks[layer]
        if before == after:
            lines.append(f"layer {layer} has {after.words} already")
            continue
        if before.name == after.name:
            frames = (", ".join(map(str, mask.global_frames)) for mask in (before, after))
            lines.append(f"layer {layer}: {after.words} stays, its global frames {' become '.join(frames)}")
            continue
        sparser = ", a sparser mask" if after.kept_tiles < before.kept_tiles else ""
        shares = f"{shares_told(before)} become {shares_told(after)}"
        lines.append(f"layer {layer}: {before.words} becomes {after.words}{sparser}: {shares}")
    lines.append(f"tiles of all layers: {shares_told(old)} become {shares_told(made)}")
    if old.predicted:
        lines.append(f"left out, as it was predicted of the masks before: {', '.join(old.predicted)}")
    return lines
