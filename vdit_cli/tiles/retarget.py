"""A mask plan made over for another size of video: every layer keeps the stride of its global frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from vdit_cli.errors import EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan


@dataclass(frozen=True)
class MadeOver:
    """A plan made of the one `before`, and what differs between the two, in lines."""

    plan: MaskPlan
    before: MaskPlan
    lines: tuple[str, ...]

    def content(self) -> dict[str, Any]:
        """What differs as JSON values: grid, layers with another mask, shares of all tiles, predictions left out."""
        old, made = self.before, self.plan
        return {
            "grid": {"before": asdict(old.grid), "after": asdict(made.grid)},
            "changes": [
                {"layer": layer, "before": before.content(), "after": after.content()}
                for layer, (before, after) in enumerate(zip(old.masks, made.masks, strict=True))
                if before != after
            ],
            "kept_share": {"before": old.kept_share, "after": made.kept_share},
            "skipped_share": {"before": old.skipped_share, "after": made.skipped_share},
            "left_out": [key for key in old.predicted if key not in made.predicted],
        }


def stride_of(mask: TileMask) -> int | None:
    """The smallest stride that gives exactly these global frames, or None where no stride does; the full mask has 1."""
    later = mask.global_frames[1:]
    stride = later[0] if later else mask.frames
    return stride if mask == TileMask.from_stride(mask.frames, max(stride, 1)) else None


def retarget(plan: MaskPlan, grid: VideoGrid) -> MadeOver:
    """The plan with the same stride in each layer on another `grid`: 2:6 of 8 frames is 6:18 of 24, and 1:7 is 3:21.

    A mask of one global frame has the stride F, as its name says. What was predicted is left out, since it was for the
    other size; `made_by` tells the plan that this one was made of. Raises EvditError for a layer whose global frames
    have no stride.
    """
    if plan.grid == grid:
        return MadeOver(plan, plan, ())
    strides = [stride_of(mask) for mask in plan.masks]
    for layer, (mask, stride) in enumerate(zip(plan.masks, strides, strict=True)):
        if stride is None:
            raise EvditError(
                f"global frames {list(mask.global_frames)} of {mask.frames} can't be carried over to {grid.frames}: "
                "only those at one stride from frame 0 on can",
                where=f"{plan.origin or 'the plan'} layer {layer}",
                next_steps=["a search at the other size"],
            )
    masks = tuple(TileMask.from_stride(grid.frames, stride) for stride in strides if stride is not None)
    made_by = {
        "command": "masks retarget",
        "plan": plan.digest,
        "grid": asdict(plan.grid),
        "made_by": dict(plan.made_by),
    }
    made = replace(plan, grid=grid, masks=masks, made_by=made_by, predicted={}, origin=None)
    return MadeOver(made, plan, tuple(_changes(plan, made)))


def shares_told(of: TileMask | MaskPlan) -> str:
    """The shares of tiles that a mask or a plan keeps and skips, in words."""
    return f"{100 * of.kept_share:.1f} % kept, {100 * of.skipped_share:.1f} % skipped"


def _changes(old: MaskPlan, made: MaskPlan) -> list[str]:
    """What differs, a line each: the grid, each kind of layer from the densest on, the kept tiles, predictions."""
    lines = [f"{old.grid} become {made.grid}"]
    layers = Counter(zip(old.masks, made.masks, strict=True))
    for (before, after), count in sorted(layers.items(), key=lambda item: -item[0][0].kept_tiles):
        if before != after:
            plural = "" if count == 1 else "s"
            lines.append(f"{before.words} becomes {after.words} in {count} layer{plural} (stride {stride_of(before)})")
    if old.kept_share != made.kept_share:
        lines.append(f"tiles: {shares_told(old)} become {shares_told(made)}")
    if old.predicted:
        lines.append(f"left out, as it was predicted for the other size: {', '.join(old.predicted)}")
    return lines
