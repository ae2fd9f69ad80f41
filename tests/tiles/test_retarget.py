"""Plans made over for another size keep their strides, and what changes is said."""

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
from vdit_cli.tiles.retarget import retarget, stride_of

SMALL, LARGE = VideoGrid(8, 45, 80), VideoGrid(24, 45, 80)
NAMES = ("8:0", "2:6", "2:6", "3:5", "1:7")
PLAN = MaskPlan(
    "shapes",
    SMALL,
    tuple(TileMask.parse(name, 8) for name in NAMES),
    "ab" * 32,
    {"command": "search-masks"},
    {"loss": 0.5, "speedup": 1.5},
    Architecture("OpenSoraT2V", 5, 6, 48),
)


def test_the_masks_of_the_paper_at_8_frames_become_those_at_24():
    """Strides 3, 4 and 8 are 8:16, 6:18 and 3:21 there (Table 1 of arXiv 2502.06155); weights and model stay."""
    made = retarget(PLAN, LARGE)
    assert [mask.name for mask in made.plan.masks] == ["24:0", "6:18", "6:18", "8:16", "3:21"]
    assert [stride_of(mask) for mask in made.plan.masks] == [1, 4, 4, 3, 8]
    assert made.plan.grid == LARGE
    assert (made.plan.backbone, made.plan.architecture) == (PLAN.backbone, PLAN.architecture)
    assert made.plan.searched_on == PLAN.searched_on and made.plan.predicted == {}
    assert made.plan.made_by["plan"] == PLAN.digest and made.plan.made_by["grid"] == asdict(SMALL)


def test_what_changes_is_said():
    """The grid, each kind of layer from the densest on, the tiles of the whole plan, and what is no longer known."""
    kept, kept_then = (64 + 34 * 2 + 44 + 22) / 64 / 5, (576 + 2 * 270 + 336 + 156) / 576 / 5
    assert retarget(PLAN, LARGE).lines == (
        "8 frames of 45 x 80 tokens become 24 frames of 45 x 80 tokens",
        "8:0 (full attention) becomes 24:0 (full attention) in 1 layer (stride 1)",
        "3:5 becomes 8:16 in 1 layer (stride 3)",
        "2:6 becomes 6:18 in 2 layers (stride 4)",
        "1:7 becomes 3:21 in 1 layer (stride 8)",
        f"tiles: {100 * kept:.1f} % kept, {100 - 100 * kept:.1f} % skipped become {100 * kept_then:.1f} % kept, "
        f"{100 - 100 * kept_then:.1f} % skipped",
        "left out, as it was predicted for the other size: loss, speedup",
    )


def test_another_height_leaves_the_masks():
    """Only the grid is another one; at its own grid the plan is the same to the byte."""
    made = retarget(replace(PLAN, predicted={}), VideoGrid(8, 30, 40))
    assert made.plan.masks == PLAN.masks
    assert made.lines == ("8 frames of 45 x 80 tokens become 8 frames of 30 x 40 tokens",)
    assert retarget(PLAN, SMALL).plan is PLAN and retarget(PLAN, SMALL).lines == ()


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
def test_a_stride_is_found_and_kept(frames: int, other: int, stride: int):
    """The smallest that gives these frames; on more frames it comes back, on fewer the first frame stays global."""
    mask = TileMask.from_stride(frames, stride)
    found = stride_of(mask)
    assert found == min(s for s in range(1, frames + 1) if TileMask.from_stride(frames, s) == mask)
    made = retarget(MaskPlan("m", VideoGrid(frames, 1, 1), (mask,)), VideoGrid(other, 1, 1)).plan.masks[0]
    assert made.global_frames == tuple(range(0, other, found))
    if other >= frames:
        assert retarget(MaskPlan("m", VideoGrid(other, 1, 1), (made,)), VideoGrid(frames, 1, 1)).plan.masks[0] == mask


def test_every_mask_of_the_family_has_a_stride():
    """A searched plan can always be made over."""
    assert all(stride_of(mask) for frames in range(1, 40) for mask in family_masks(frames))


def test_a_layer_without_a_stride_is_refused(tmp_path: Path):
    """With its file and number: global frames that somebody wrote by hand."""
    masks = (*PLAN.masks[:4], TileMask(8, (0, 3, 5)))
    plan = MaskPlan.read(replace(PLAN, masks=masks).write(tmp_path))
    with pytest.raises(EvditError, match=r"global frames \[0, 3, 5\] of 8 can't be carried over to 24") as caught:
        retarget(plan, LARGE)
    assert (caught.value.where, caught.value.exit_code) == (f"{tmp_path / 'plan.json'} layer 4", USAGE)
    for frames in ((1, 3, 5, 7), (4,), (0, 2, 4), (0, 7, 6)):
        assert stride_of(TileMask(8, frames)) is None
