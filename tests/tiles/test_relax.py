"""Plans with another mask in some layers: those and no others change, and what changes is said."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdit_cli.errors import USAGE, EvditError
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask, family_masks
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.tiles.relax import read_layers, relax

NAMES = ("8:0", "2:6", "1:7", "3:5")
PLAN = MaskPlan(
    "shapes",
    VideoGrid(8, 45, 80),
    tuple(TileMask.parse(name, 8) for name in NAMES),
    "ab" * 32,
    {"command": "search-masks"},
    {"loss": 0.5, "speedup": 1.5},
    Architecture("OpenSoraT2V", 4, 6, 48),
)


def test_a_layer_gets_the_mask_and_all_else_stays():
    """But for what was predicted; `made_by` tells the plan that it was made of."""
    made = relax(PLAN, (2,), "4:4").plan
    assert [mask.name for mask in made.masks] == ["8:0", "2:6", "4:4", "3:5"]
    assert made.made_by == {
        "command": "masks relax",
        "plan": PLAN.digest,
        "layers": [2],
        "to": "4:4",
        "made_by": {"command": "search-masks"},
    }
    assert replace(made, masks=PLAN.masks, made_by=PLAN.made_by, predicted=PLAN.predicted) == PLAN
    assert made.predicted == {}


def test_what_changes_is_said():
    """Each layer with its shares before and after, a sparser mask as one, the whole plan, what is no longer known.

    Of 64 tiles 8:0 keeps 64, 4:4 52, 3:5 44, 2:6 34 and 1:7 22: counted, k rows and columns and the rest of the
    diagonal.
    """
    before, after = (64 + 34 + 22 + 44) / 256, (52 + 52 + 52 + 44) / 256
    assert relax(PLAN, (0, 1, 2), "4:4").lines == (
        "layer 0: 8:0 (full attention) becomes 4:4, a sparser mask: 100.0 % kept, 0.0 % skipped become 81.2 % kept, "
        "18.8 % skipped",
        "layer 1: 2:6 becomes 4:4: 53.1 % kept, 46.9 % skipped become 81.2 % kept, 18.8 % skipped",
        "layer 2: 1:7 becomes 4:4: 34.4 % kept, 65.6 % skipped become 81.2 % kept, 18.8 % skipped",
        f"tiles of all layers: {100 * before:.1f} % kept, {100 - 100 * before:.1f} % skipped become "
        f"{100 * after:.1f} % kept, {100 - 100 * after:.1f} % skipped",
        "left out, as it was predicted of the masks before: loss, speedup",
    )
    assert not any("left out" in line for line in relax(replace(PLAN, predicted={}), (1,), "4:4").lines)


def test_a_layer_that_has_it_already_is_said_and_not_told_as_changed():
    """One of two; of none that changes there is no plan to write."""
    made = relax(PLAN, (1, 2), "2:6")
    assert made.lines[0] == "layer 1 has 2:6 already" and made.plan.made_by["layers"] == [2]
    with pytest.raises(EvditError, match=r"layers 0, 3 have the mask 8:0 \(full attention\) already") as caught:
        relax(replace(PLAN, masks=(PLAN.masks[0],) * 4), (0, 3), "dense")
    assert caught.value.exit_code == USAGE
    with pytest.raises(EvditError, match="layer 1 has the mask 2:6 already: nothing would change"):
        relax(PLAN, (1,), "2:6")


def test_other_frames_of_the_same_name_are_a_change():
    """Frames that somebody chose by hand make way for the family's; name and shares don't change, which is said."""
    made = relax(replace(PLAN, masks=(*PLAN.masks[:3], TileMask(8, (0, 5)))), (3,), "2:6")
    assert made.plan.masks[3] == TileMask.parse("2:6", 8)
    assert made.lines[0] == "layer 3: 2:6 stays, its global frames 0, 5 become 0, 4"


def test_what_changes_is_told_as_objects_too():
    """A layer that changes with its masks before and after; shares of all tiles and what is left out."""
    told = relax(PLAN, (1, 3), "2:6").content()
    assert told == {
        "grid": {"before": asdict(PLAN.grid), "after": asdict(PLAN.grid)},
        "changes": [
            {
                "layer": 3,
                "before": {
                    "mask": "3:5",
                    "global_frames": [0, 3, 6],
                    "kept_share": 44 / 64,
                    "skipped_share": 1 - 44 / 64,
                },
                "after": {"mask": "2:6", "global_frames": [0, 4], "kept_share": 34 / 64, "skipped_share": 1 - 34 / 64},
            }
        ],
        "kept_share": {"before": (64 + 34 + 22 + 44) / 256, "after": (64 + 34 + 22 + 34) / 256},
        "skipped_share": {"before": 1 - (64 + 34 + 22 + 44) / 256, "after": 1 - (64 + 34 + 22 + 34) / 256},
        "left_out": ["loss", "speedup"],
    }


def test_a_mask_of_other_frames_is_refused_with_those_that_fit():
    """At 24 latent frames 4:4 is no mask."""
    with pytest.raises(EvditError, match="mask 4:4 is for 8 frames: this video has 24 latent frames") as caught:
        relax(MaskPlan("m", VideoGrid(24, 2, 2), (TileMask.dense(24),)), (0,), "4:4")
    assert (caught.value.where, caught.value.exit_code) == ("--to 4:4", USAGE)
    assert "4:20" in caught.value.next_steps
    with pytest.raises(EvditError, match="'full' is no mask"):
        relax(PLAN, (1,), "full")


@given(st.integers(1, 24), st.data())
def test_every_mask_of_the_family_can_be_given(frames: int, data: st.DataObject):
    """By its name, and the full one as dense; only the layers asked for have it."""
    masks = family_masks(frames)
    to = data.draw(st.sampled_from(masks))
    old = tuple(data.draw(st.lists(st.sampled_from(masks), min_size=1, max_size=5)))
    layers = tuple(data.draw(st.sets(st.integers(0, len(old) - 1), min_size=1)))
    plan = MaskPlan("m", VideoGrid(frames, 1, 1), old)
    if all(old[layer] == to for layer in layers):
        return
    made = relax(plan, layers, "dense" if to == TileMask.dense(frames) else to.name).plan
    assert made.masks == tuple(to if layer in layers else mask for layer, mask in enumerate(old))


def test_layers_are_read_from_one_text_or_several():
    """In order, each once."""
    assert read_layers(["7,9", " 0 ", "9"], 10) == (0, 7, 9)


@pytest.mark.parametrize("text", ["ten", "-1", "1.0", "", "3,", "1-3", "٣", "0000000001", "9" * 20])
def test_what_is_no_layer_is_refused(text: str):
    """A number below zero too."""
    with pytest.raises(EvditError, match="is no layer: layers are 0 to 9, several with commas between") as caught:
        read_layers([text], 10)
    assert caught.value.where and caught.value.where.startswith("--layer") and caught.value.exit_code == USAGE


def test_a_layer_out_of_range_is_refused(tmp_path: Path):
    """With the layers that there are."""
    with pytest.raises(EvditError, match="'10' is no layer: layers are 0 to 9") as caught:
        read_layers(["9,10"], 10)
    assert caught.value.where == "--layer 10"
