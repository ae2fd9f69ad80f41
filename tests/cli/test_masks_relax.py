"""`evdit masks relax`: a plan with another mask in some layers, as a file that commands take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vdit_cli.errors import DONE, USAGE
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

Evdit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan() -> Path:
    """A plan of eight layers of 2:6 with a forecast, as a run's folder has it."""
    Path("run").mkdir()
    masks = (TileMask.parse("2:6", 8),) * 8
    return MaskPlan("shapes", VideoGrid(8, 8, 8), masks, "ab" * 32, predicted={"loss": 0.5}).write("run")


def test_a_sealed_plan_is_written_and_what_changes_is_said(evdit: Evdit, plan: Path):
    """Of a run's folder, which is left as it is; layers in one flag or in several."""
    before = plan.read_bytes()
    code, out, err = evdit("masks", "relax", "run", "--layer", "7,5", "--layer", "0", "--to", "4:4", "-o", "made.json")
    assert (code, err, plan.read_bytes()) == (DONE, "", before)
    made = MaskPlan.read("made.json")
    assert [layer for layer, mask in enumerate(made.masks) if mask.name == "4:4"] == [0, 5, 7]
    assert made.histogram() == {"4:4": 3, "2:6": 5} and made.predicted == {}
    lines = out.splitlines()
    assert lines[0] == "layer 0: 2:6 becomes 4:4: 53.1 % kept, 46.9 % skipped become 81.2 % kept, 18.8 % skipped"
    assert lines[3] == "tiles of all layers: 53.1 % kept, 46.9 % skipped become 63.7 % kept, 36.3 % skipped"
    assert lines[4] == "left out, as it was predicted of the masks before: loss"
    assert lines[-1] == f"wrote made.json: digest {made.digest}"


def test_the_result_is_json_where_it_is_asked_for(evdit: Evdit, plan: Path):
    """File, digest, changes; a folder gets plan.json."""
    Path("made").mkdir()
    code, out, _ = evdit("masks", "relax", str(plan), "--layer", "7", "--to", "dense", "-o", "made", "--json")
    told = json.loads(out)
    assert (code, told["schema"], Path(told["file"])) == (DONE, "evdit.masks-relax/1", Path("made/plan.json"))
    assert told["digest"] == MaskPlan.read("made").digest and told["left_out"] == ["loss"]
    (change,) = told["changes"]
    assert (change["layer"], change["before"]["mask"], change["after"]["mask"]) == (7, "2:6", "8:0")
    assert told["kept_share"]["after"] > told["kept_share"]["before"]


def test_a_plan_that_is_there_is_not_replaced(evdit: Evdit, plan: Path):
    """Unless --overwrite says so."""
    command = ["masks", "relax", str(plan), "--layer", "7", "--to", "4:4", "-o", str(plan)]
    before = plan.read_bytes()
    code, out, err = evdit(*command)
    assert (code, out) == (USAGE, "") and "plan.json is there already" in err and "--overwrite" in err
    assert plan.read_bytes() == before
    assert evdit(*command, "--overwrite")[0] == DONE and MaskPlan.read(plan).masks[7].name == "4:4"


@pytest.mark.parametrize(
    ("flags", "rule"),
    [
        (["--layer", "8", "--to", "4:4"], "'8' is no layer: layers are 0 to 7"),
        (["--layer", "7", "--to", "4:20"], "this video has 8 latent frames"),
        (["--layer", "7", "--to", "2:6"], "layer 7 has the mask 2:6 already"),
        (["--layer", "7"], "missing option '--to'"),
    ],
)
def test_what_can_not_be_is_refused(evdit: Evdit, plan: Path, flags: list[str], rule: str):
    """And nothing is written."""
    code, out, err = evdit("masks", "relax", str(plan), *flags, "-o", "made.json")
    assert (code, out) == (USAGE, "") and rule in err
    assert [path.name for path in Path().iterdir()] == ["run"]
