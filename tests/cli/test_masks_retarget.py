"""`evdit masks retarget`: a plan of the embedded model at another size, as a file that commands take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_pipeline import write_pipeline
from vdit_cli.errors import DONE, USAGE
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

Evdit = Callable[..., tuple[int, str, str]]
MADE = Architecture("OpenSoraT2V", 8, 6, 48)


@pytest.fixture
def plan() -> Path:
    """A plan of the model `shapes` at its own size: full attention in half of the layers, 2:6 in the others."""
    masks = (TileMask.dense(8),) * 4 + (TileMask.parse("2:6", 8),) * 4
    return MaskPlan("shapes", VideoGrid(8, 8, 8), masks, "ab" * 32, architecture=MADE).write("plan.json")


def test_a_plan_is_written_for_the_size_and_what_changes_is_said(evdit: Evdit, plan: Path):
    """Frames and width of the video; the height is the model's own. The file is named by its size."""
    code, out, err = evdit("masks", "retarget", str(plan), "--frames", "93", "--width", "192")
    assert (code, err) == (DONE, "")
    made = MaskPlan.read("plan-93x128x192.json")
    assert (made.grid, made.histogram()) == (VideoGrid(24, 8, 12), {"24:0": 4, "6:18": 4})
    lines = out.splitlines()
    assert lines[0] == "8 frames of 8 x 8 tokens become 24 frames of 8 x 12 tokens"
    assert lines[2] == "2:6 becomes 6:18 in 4 layers (stride 4)"
    assert lines[-1] == f"wrote plan-93x128x192.json: digest {made.digest}"


def test_the_result_is_json_where_it_is_asked_for(evdit: Evdit, plan: Path):
    """File, digest, changes; a folder gets plan.json, and the model may be named."""
    Path("made").mkdir()
    command = ["masks", "retarget", str(plan), "--model", "shapes", "--frames", "61", "-o", "made", "--json"]
    code, out, _ = evdit(*command)
    told = json.loads(out)
    assert (code, told["schema"], Path(told["file"])) == (DONE, "evdit.masks-retarget/1", Path("made/plan.json"))
    assert told["digest"] == MaskPlan.read("made").digest and told["grid"]["after"]["frames"] == 16
    assert [each["after"]["mask"] for each in told["changes"]] == ["16:0"] * 4 + ["4:12"] * 4


def test_a_plan_that_is_there_is_not_replaced(evdit: Evdit, plan: Path):
    """Unless --overwrite says so."""
    command = ["masks", "retarget", str(plan), "--frames", "93", "-o", str(plan)]
    before = plan.read_bytes()
    code, out, err = evdit(*command)
    assert (code, out) == (USAGE, "") and "plan.json is there already" in err and "--overwrite" in err
    assert plan.read_bytes() == before
    assert evdit(*command, "--overwrite")[0] == DONE and MaskPlan.read(plan).grid.frames == 24


@pytest.mark.parametrize("words", [["retarget", "--frames", "93"], ["relax", "--layer", "0", "--to", "4:4"]])
def test_what_is_no_plan_is_replaced_by_none(evdit: Evdit, plan: Path, words: list[str]):
    """Whatever --overwrite says."""
    Path("video.mp4").write_bytes(b"frames")
    code, out, err = evdit("masks", words[0], str(plan), *words[1:], "-o", "video.mp4", "--overwrite")
    assert (code, out) == (USAGE, "") and "video.mp4 is there already and no plan" in err
    assert Path("video.mp4").read_bytes() == b"frames"


def test_its_own_size_changes_nothing(evdit: Evdit, plan: Path):
    """And says so."""
    code, out, _ = evdit("masks", "retarget", str(plan))
    assert code == DONE and out.startswith("nothing changes: the plan is for this size\nwrote plan-29x128x128.json")
    assert MaskPlan.read("plan-29x128x128.json") == MaskPlan.read(plan)


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--frames", "30"], "4k+1"),
        (["--height", "100"], "height 100 does not fit"),
        (["--model", "shaps"], "unknown model 'shaps'"),
    ],
)
def test_sizes_and_models_that_can_not_be_are_refused(evdit: Evdit, plan: Path, flags: list[str], rule: str):
    """By the model itself, and nothing is written."""
    code, out, err = evdit("masks", "retarget", str(plan), *flags)
    assert (code, out) == (USAGE, "") and rule in err
    assert [path.name for path in Path().iterdir()] == ["plan.json"]


def test_a_plan_of_another_architecture_is_refused(evdit: Evdit):
    """It would fit no video of that model."""
    other = Architecture("OpenSoraT2V", 2, 6, 48)
    MaskPlan("shapes", VideoGrid(8, 8, 8), (TileMask.dense(8),) * 2, architecture=other).write("plan.json")
    code, out, err = evdit("masks", "retarget", "plan.json", "--frames", "93")
    assert (code, out) == (USAGE, "") and "the plan has 2 layers, shapes has 8" in err
    assert [path.name for path in Path().iterdir()] == ["plan.json"]


def test_the_help_page_ends_with_its_example(evdit: Evdit):
    """A line to copy."""
    code, out, _ = evdit("masks", "retarget", "--help")
    assert code == DONE and out.split("Example:\n")[1].startswith("  evdit masks retarget plan.json --frames 93")


def test_advice_works_here(evdit: Evdit, plan: Path):
    """No frames above the bound of the flag, and no flag that the command lacks."""
    _, _, err = evdit("masks", "retarget", str(plan), "--frames", "65536")
    assert "try:   --frames 65533\n" in err
    small = MaskPlan("shapes", VideoGrid(8, 8, 8), (TileMask.dense(8),) * 4).write("four.json")
    code, _, err = evdit("masks", "retarget", str(small), "--frames", "93")
    assert code == USAGE and "the plan has 4 layers, shapes has 8" in err
    assert err.splitlines()[-1] == "  try:   a plan made on this shapes"


def test_the_model_of_a_plan_that_a_folder_made_is_found_by_its_run_or_asked_for(evdit: Evdit):
    """A plan knows that folder's name alone; beside run.json it is known where it lies."""
    write_pipeline(Path("models/tiny"))
    Path("prompts.txt").write_text("a large red circle\n", encoding="utf-8")
    asked = ["--prompts-file", "prompts.txt", "--steps", "1", "--at", "0", "--device", "cpu"]
    assert evdit("search-masks", "--model", "models/tiny", *asked, "-o", "search")[0] == DONE
    code, out, _ = evdit("masks", "retarget", "search", "--frames", "13", "-o", "longer.json")
    assert code == DONE and MaskPlan.read("longer.json").grid.frames == 4
    code, out, err = evdit("masks", "retarget", "longer.json", "--frames", "17")
    assert (code, out) == (USAGE, "")
    assert err.splitlines() == [
        "error: the plan was made on the model tiny, which is no registered one and no folder here",
        "  from:  longer.json",
        "  try:   --model FOLDER  (where that model lies)",
    ]
    assert evdit("masks", "retarget", "longer.json", "--frames", "17", "--model", "models/tiny")[0] == DONE
