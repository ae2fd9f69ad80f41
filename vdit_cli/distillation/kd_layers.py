"""What knowledge distillation changed layer by layer: the attention loss of each masked layer, before and after.

layers.json: schema evdit.kd-layers/1, "layers": [{"layer": 0, "mask": "1:7", "before": 0.31, "after": 0.04}, ...]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.errors import quoted
from vdit_cli.tiles.mask import TileMask, family_masks
from vdit_cli.tiles.plan import MaskPlan

SCHEMA = "evdit.kd-layers/1"
FILE = "layers.json"
HARDLY = 0.5
"""A layer with more than this share of its loss left has learnt hardly anything of its mask [ours]."""
OTHERS = 3
"""So many denser masks are told of."""


@dataclass(frozen=True)
class TaughtLayer:
    """A masked layer: its mask's name, and its relative attention error on held-out clips before and after."""

    layer: int
    mask: str
    before: float
    after: float

    @property
    def left(self) -> float:
        """The share of the error that is left; of none, 0 where there still is none."""
        return self.after / self.before if self.before else float(self.after > 0)


def taught_layers(plan: MaskPlan, before: Mapping[int, float], after: Mapping[int, float]) -> list[TaughtLayer]:
    """The masked layers in order."""
    return [TaughtLayer(layer, plan.masks[layer].name, was, after[layer]) for layer, was in before.items()]


def write_layers(layers: list[TaughtLayer], file: Path) -> None:
    """Write the report as JSON, whole or not at all."""
    write_json(file, {"schema": SCHEMA, "layers": [asdict(each) for each in layers]})


def layer_lines(layers: list[TaughtLayer], plan: MaskPlan, place: Path) -> list[str]:
    """The report as lines of text; a layer that learnt hardly anything is told with what denser masks would cost.

    `place` is where the plan lies. The commands that give such layers a denser mask work one after another.
    """
    lines = ["attention loss of held-out clips", "layer  mask    before     after      after/before"]
    for each in layers:
        told = f"{each.layer:5d}  {each.mask:6s}  {each.before:<9.4g}  {each.after:<9.4g}  {each.left:.2f}"
        lines.append(told)
    same: dict[TileMask, list[int]] = {}
    for each in layers:
        if each.left > HARDLY:
            same.setdefault(plan.masks[each.layer], []).append(each.layer)
    source, overwrite = quoted(str(place)), ""
    for mask, which in same.items():
        if not (denser := denser_masks(mask)):
            continue
        numbers, costs = ",".join(map(str, which)), ", ".join(f"{each.name} {each.kept_tiles}" for each in denser)
        names = f"layer {numbers} has" if len(which) == 1 else f"layers {numbers} have"
        relax = f"evdit masks relax {source} --layer {numbers} --to {denser[0].name} -o plan.json{overwrite}"
        lines.append(
            f"{names} more than {HARDLY:g} of the loss under {mask.name}, which keeps {mask.kept_tiles} of "
            f"{mask.frames**2} tiles; denser masks keep more ({costs}): {relax}"
        )
        source, overwrite = "plan.json", " --overwrite"
    return lines


def denser_masks(mask: TileMask) -> list[TileMask]:
    """The next denser masks of as many frames, the sparsest first."""
    tiles = {other.kept_tiles: other for other in family_masks(mask.frames) if other.kept_tiles > mask.kept_tiles}
    return [tiles[count] for count in sorted(tiles)][:OTHERS]
