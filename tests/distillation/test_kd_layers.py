"""The report of a knowledge distillation, layer by layer: numbers, names, and what another mask would cost."""

from __future__ import annotations

import json
from pathlib import Path

from vdit_cli.distillation.kd_layers import TaughtLayer, denser_masks, layer_lines, taught_layers, write_layers
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

MASKS = tuple(TileMask.parse(name, 8) for name in ("1:7", "8:0", "2:6", "4:4"))
PLAN = MaskPlan("shapes", VideoGrid(8, 2, 2), MASKS)
LAYERS = [TaughtLayer(0, "1:7", 0.4, 0.25), TaughtLayer(2, "2:6", 0.2, 0.05), TaughtLayer(3, "4:4", 0.0, 0.0)]


def test_masked_layers_are_told_of(tmp_path: Path):
    found = taught_layers(PLAN, {0: 0.4, 2: 0.2, 3: 0.0}, {0: 0.25, 2: 0.05, 3: 0.0})
    assert found == LAYERS
    write_layers(found, tmp_path / "layers.json")
    told = json.loads((tmp_path / "layers.json").read_text(encoding="utf-8"))
    assert told["schema"] == "evdit.kd-layers/1"
    assert told["layers"][0] == {"layer": 0, "mask": "1:7", "before": 0.4, "after": 0.25}


def test_denser_masks_are_the_next_ones():
    """Counted by hand: of 8 frames k global ones keep (2k + 1) 8 - k (k + 1) of 64 tiles; dense is the last."""
    assert [(mask.name, mask.kept_tiles) for mask in denser_masks(MASKS[0])] == [("2:6", 34), ("3:5", 44), ("4:4", 52)]
    assert [mask.kept_tiles for mask in denser_masks(MASKS[3])] == [64]
    assert denser_masks(TileMask.dense(8)) == []


def test_a_layer_that_hardly_learnt_is_named(tmp_path: Path):
    """More than half of its loss is left: with the command that gives it another mask."""
    lines = layer_lines(LAYERS, PLAN, tmp_path / "plan.json")
    assert len(lines) == 2 + 3 + 1
    assert lines[2].split() == ["0", "1:7", "0.4", "0.25", "0.62"] and lines[3].split()[-1] == "0.25"
    told = (
        "layer 0 has more than 0.5 of the loss under 1:7, which keeps 22 of 64 tiles; denser masks keep more (2:6 34, "
    )
    assert lines[5].startswith(told)
    assert lines[5].endswith(f"evdit masks relax {tmp_path / 'plan.json'} --layer 0 --to 2:6 -o plan.json")
    (worse,) = layer_lines([TaughtLayer(3, "4:4", 0.0, 0.1)], PLAN, tmp_path)[3:]
    assert worse.startswith("layer 3 has more than 0.5 of the loss under 4:4")


def test_the_commands_for_layers_work_one_after_another(tmp_path: Path):
    """One for all layers of a mask; the next mask's starts from what the one before wrote."""
    worse = [TaughtLayer(layer, PLAN.masks[layer].name, 0.1, 0.2) for layer in range(len(PLAN.masks))]
    commands = [line.split(": evdit ")[1] for line in layer_lines(worse, PLAN, tmp_path) if ": evdit " in line]
    lacking = [mask for mask in dict.fromkeys(PLAN.masks) if denser_masks(mask)]
    assert len(commands) == len(lacking) > 1
    for number, (command, mask) in enumerate(zip(commands, lacking, strict=True)):
        layers = ",".join(str(layer) for layer, each in enumerate(PLAN.masks) if each == mask)
        source, more = (tmp_path, "") if number == 0 else ("plan.json", " --overwrite")
        to = denser_masks(mask)[0].name
        assert command == f"masks relax {source} --layer {layers} --to {to} -o plan.json{more}"
