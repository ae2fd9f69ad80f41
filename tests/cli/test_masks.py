"""`evdit masks`: what a plan looks like, and the way of an edited plan back into use."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.closeness import assert_close
from vdit_cli.cli.console import Console
from vdit_cli.cli.masks import BLOCKS, PLAIN_BLOCKS, blocks_for, draw
from vdit_cli.errors import DONE, STEERING, USAGE, EvditError
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import MOST_DRAWN, TileMask
from vdit_cli.tiles.plan import MaskPlan

Evdit = Callable[..., tuple[int, str, str]]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A sealed plan of three layers in a run folder."""
    masks = tuple(TileMask.parse(name, 8) for name in ("8:0", "2:6", "1:7"))
    grid, architecture = VideoGrid(8, 8, 8, text_after=5), Architecture("OpenSoraT2V", 3, 6, 48)
    made = MaskPlan("shapes", grid, masks, "ab" * 32, {"r": 0.1}, {"speedup": 1.5}, architecture)
    (tmp_path / "search").mkdir()
    return made.write(tmp_path / "search")


def edit(file: Path, change: Callable[[dict], object]) -> None:
    """Change a plan's JSON as a person does in an editor: the digest stays what it was."""
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def test_show_draws_a_row_a_layer(evdit: Evdit, plan: Path):
    """Layer, mask, both shares, frames; a file and its run folder look the same."""
    code, out, err = evdit("masks", "show", str(plan))
    assert (code, err) == (DONE, "")
    lines = out.splitlines()
    made = "OpenSoraT2V of 3 layers of 6 heads x 48"
    assert lines[0].startswith(f"{plan}: shapes, {made}, 8 frames of 8 x 8 tokens and 5 text tokens, digest ")
    assert [line.split() for line in lines[1:5]] == [
        ["layer", "mask", "kept", "skipped", "frames"],
        ["0", "8:0", "100.0", "%", "0.0", "%", "████████"],
        ["1", "2:6", "53.1", "%", "46.9", "%", "█░░░█░░░"],
        ["2", "1:7", "34.4", "%", "65.6", "%", "█░░░░░░░"],
    ]
    assert lines[5] == "of all tiles kept 62.5 %, skipped 37.5 %; layers: 8:0 in 1, 2:6 in 1, 1:7 in 1"
    assert evdit("masks", "show", str(plan.parent)) == (code, out, err)


@pytest.mark.numerical
def test_show_as_json(evdit: Evdit, plan: Path):
    """The whole plan, with shares of tiles and of token pairs."""
    code, out, _ = evdit("masks", "show", str(plan), "--json")
    told, made = json.loads(out), MaskPlan.read(plan)
    assert (code, told["schema"], told["digest"]) == (DONE, "evdit.masks/1", made.digest)
    assert (told["searched_on"], told["made_by"], told["predicted"]) == ("ab" * 32, {"r": 0.1}, {"speedup": 1.5})
    assert told["architecture"] == {"transformer": "OpenSoraT2V", "layers": 3, "heads": 6, "head_dim": 48}
    layer = told["layers"][2]
    assert (layer["layer"], layer["mask"], layer["global_frames"]) == (2, "1:7", [0])
    assert (layer["kept_share"], layer["skipped_share"]) == (22 / 64, 42 / 64)
    pairs = (69 * 517 + 7 * 64 * (69 + 64)) / 517**2
    assert_close((layer["kept_pair_share"], layer["skipped_pair_share"]), (pairs, 1 - pairs))


def test_a_terminal_gets_the_same_rows_in_colours(plan: Path):
    """rich draws; the numbers and the frames are there."""
    out = io.StringIO()
    draw(MaskPlan.read(plan), Console(out=out))
    told = out.getvalue()
    assert "█░░░█░░░" in told and "53.1 %" in told and "skipped 37.5 %" in told


def test_an_output_without_blocks_gets_plain_signs():
    """cp1252 has no full block."""
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    assert blocks_for(Console(out=narrow)) == PLAIN_BLOCKS
    assert blocks_for(Console(out=io.StringIO())) == BLOCKS


def test_an_edited_plan_is_refused_until_it_is_sealed(evdit: Evdit, plan: Path):
    """The error says how, the command does it, and the content is what the person wrote."""
    edit(plan, lambda content: content["layers"].__setitem__(0, {"mask": "1:7", "global_frames": [0]}))
    code, out, err = evdit("masks", "show", str(plan))
    assert (code, out) == (USAGE, "") and f"evdit masks seal {plan}" in err
    code, out, err = evdit("masks", "seal", str(plan))
    assert (code, err) == (DONE, "left out, as it was predicted before the edit: speedup\n")
    assert out.startswith(f"sealed {plan}: digest ")
    assert evdit("masks", "show", str(plan))[0] == DONE
    found = MaskPlan.read(plan)
    assert found.histogram() == {"2:6": 1, "1:7": 2} and found.predicted == {}
    edit(plan, lambda content: content["layers"].__setitem__(0, {"mask": "2:6", "global_frames": [0, 4]}))
    assert evdit("masks", "seal", str(plan))[::2] == (DONE, "")
    made_by = {"command": "masks seal", "made_by": {"r": 0.1}}
    assert MaskPlan.read(plan).made_by == made_by, "edited twice, said once"


def test_the_plan_of_a_student_is_sealed_where_it_lies(evdit: Evdit, plan: Path, tmp_path: Path):
    """A distillation keeps it in its student's folder; none is made beside run.json."""
    student = tmp_path / "run" / "student"
    student.mkdir(parents=True)
    moved = plan.rename(student / "plan.json")
    assert evdit("masks", "seal", str(student.parent))[1].startswith(f"sealed {moved}: digest ")
    assert [path.name for path in student.parent.iterdir()] == ["student"]


def test_seal_as_json_takes_a_run_folder_and_is_idempotent(evdit: Evdit, plan: Path):
    """Sealing twice writes the same bytes."""
    before = plan.read_bytes()
    code, out, _ = evdit("masks", "seal", str(plan.parent), "--json")
    assert code == DONE
    assert json.loads(out) == {"schema": "evdit.masks-seal/1", "file": str(plan), "digest": MaskPlan.read(plan).digest}
    assert plan.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["layers"][1].update(global_frames=[0, 9]),
        lambda content: content["layers"].pop(),
        lambda content: content.update(schema="evdit.mask-plan/0"),
    ],
)
def test_invalid_content_is_not_sealed(evdit: Evdit, plan: Path, change: Callable[[dict], object]):
    """Exit 2, and the file stays as the person left it."""
    edit(plan, change)
    before = plan.read_bytes()
    code, out, err = evdit("masks", "seal", str(plan))
    assert (code, out) == (USAGE, "") and f"from:  {plan}" in err
    assert plan.read_bytes() == before
    assert [path.name for path in plan.parent.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("verb", ["show", "seal"])
@pytest.mark.parametrize("name", ["none.json", "."])
def test_what_is_no_plan_is_refused(evdit: Evdit, verb: str, name: str):
    """A missing file and a folder without a plan."""
    code, out, err = evdit("masks", verb, name)
    assert (code, out) == (USAGE, "") and err.startswith("error: ")


@pytest.mark.parametrize("args", [(), ("show",), ("seal",)])
def test_each_help_page_ends_with_its_example(evdit: Evdit, args: tuple[str, ...]):
    """A line to copy, of this very command."""
    code, out, _ = evdit("masks", *args, "--help")
    assert code == DONE
    assert out.split("Example:\n")[1].startswith("  " + " ".join(["evdit", "masks", *args]))


def test_masks_never_import_torch(plan: Path):
    """Neither showing nor sealing waits for it."""
    program = (
        "import sys; from vdit_cli.cli.app import main; "
        f"codes = [main(['masks', verb, {str(plan)!r}]) for verb in ('show', 'seal')]; "
        "assert codes == [0, 0] and not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=Path(__file__).parents[2])


def test_a_plan_that_can_not_be_written_is_not_sealed_elsewhere(evdit: Evdit, plan: Path, monkeypatch):
    """`masks seal` has no -o to advise."""

    def unwritable(*_: object) -> None:
        raise EvditError("plan.json can't be written", where="plan.json", next_steps=["another place with -o"])

    monkeypatch.setattr(MaskPlan, "write", unwritable)
    code, out, err = evdit("masks", "seal", str(plan))
    assert (code, out) == (USAGE, "") and "error: plan.json can't be written" in err and "-o" not in err


def test_a_plans_colours_do_not_reach_the_terminal(evdit: Evdit, plan: Path):
    """Codes in a name, drawn plain, in colours, as JSON and in an error."""
    name = "tiny\x1b[31m\x9b2J\r\x7f"
    edit(plan, lambda content: content.update(backbone=name))
    assert evdit("masks", "seal", str(plan))[0] == DONE
    code, out, _ = evdit("masks", "show", str(plan))
    assert code == DONE and "tiny\\u001b[31m\\u009b2J\\u000d\\u007f" in out and not STEERING.search(out)
    drawn = io.StringIO()
    draw(MaskPlan.read(plan), Console(out=drawn))
    assert "tiny\\u001b[31m" in drawn.getvalue() and "\x1b" not in drawn.getvalue()
    code, out, _ = evdit("masks", "show", str(plan), "--json")
    assert json.loads(out)["backbone"] == name and not STEERING.search(out)
    edit(plan, lambda content: content.update(schema=name))
    code, _, err = evdit("masks", "show", str(plan))
    assert code == USAGE and "tiny" in err and not STEERING.search(err)


def test_of_a_long_plan_as_many_frames_are_drawn_as_the_terminal_has_room_for(
    evdit: Evdit, tmp_path: Path, monkeypatch
):
    """And the others counted, in both ways to draw them; a short one is drawn whole."""
    frames = 1 << 16
    plan = MaskPlan("s", VideoGrid(frames, 1, 1), (TileMask.from_stride(frames, 2),) * 3).write(tmp_path)
    for columns, told in (("100", 100), ("4000", MOST_DRAWN + 60)):
        monkeypatch.setenv("COLUMNS", columns)
        code, out, _ = evdit("masks", "show", str(plan), "-o", str(tmp_path / "plan.png"), "--overwrite")
        drawn = io.StringIO()
        draw(MaskPlan.read(plan), Console(out=drawn))
        assert code == DONE and (tmp_path / "plan.png").stat().st_size > 0
        for text in (out, drawn.getvalue()):
            (row,) = [line for line in text.splitlines() if line.split()[:1] == ["1"]]
            shown = row.count("█") + row.count("░")
            assert f"░ and {frames - shown} more" in row.replace("█ ", "░ ")
            assert told - 20 <= len(row.rstrip()) <= told and shown <= MOST_DRAWN
    short = MaskPlan("s", VideoGrid(65, 1, 1), (TileMask.dense(65),)).write(tmp_path / "short.json")
    monkeypatch.setenv("COLUMNS", "103")
    assert "█" * 65 + "\n" in evdit("masks", "show", str(short))[1]


def test_a_name_of_several_lines_stays_in_one(evdit: Evdit, plan: Path):
    """It may be that of a folder."""
    edit(plan, lambda content: content.update(backbone="a\nb" + "c" * 20_000))
    assert evdit("masks", "seal", str(plan))[0] == DONE
    first, second, *_ = evdit("masks", "show", str(plan))[1].splitlines()
    assert first.startswith(f"{plan}: a\\nbcc") and "c..., OpenSoraT2V" in first and second.startswith("layer")


@pytest.mark.parametrize("verb", ["show", "seal"])
def test_a_folder_without_a_plan_is_told_what_is_taken_here(evdit: Evdit, tmp_path: Path, verb: str):
    """No name of a mask, which --masks alone takes."""
    code, _, err = evdit("masks", verb, str(tmp_path))
    assert code == USAGE and err.splitlines()[-1] == "  try:   the folder of a run that made a plan  or  a plan file"
