"""`evdit compare` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.planted import plain_video, plant
from vdit_cli.artifacts.video_file import read_video
from vdit_cli.errors import DONE, USAGE

BRIGHTER = (10, 40, 20, 30, 5)
"""By how many levels the frames of the second run's video differ, of each pair."""


@pytest.fixture
def runs() -> None:
    """Two runs of five pairs, of which the last one moves; a video of the first has no partner."""
    for at, levels in enumerate(BRIGHTER):
        first, second = ([0, 255], [levels, 255 - levels]) if at == 4 else ([100, 100], [100 + levels] * 2)
        plant("base", str(at), plain_video(first), f"prompt {at}", seed=at)
        plant("student", str(at), plain_video(second), f"prompt {at}", seed=at)
    plant("base", "alone", plain_video([1]), "nobody else's")


def test_a_table_on_stdout_and_progress_beside(evdit, runs: None):
    """The pairs that are shown, in their order, and how many are not; who has no partner, on stderr."""
    code, out, err = evdit("compare", "base", "student", "-o", "out", "--limit", "3")
    assert code == DONE
    lines = out.splitlines()
    assert lines[0].split() == ["student", "motion", "class", "seed", "prompt"]
    assert [line.split()[1] for line in lines[1:4]] == [f"{levels / 255:.4f}" for levels in (40, 30, 5)]
    assert lines[1].split()[2:] == ["0.0000", "-", "1", "prompt", "1"]
    assert lines[3].split()[2:] == ["1.0000", "large", "motion", "4", "prompt", "4"]
    assert "pairs: 5, 3 shown, 2 left out (--limit 5 shows all)" in lines
    assert "large motion: 1 of 5 pairs, the quarter that moves most in base, by 1.0000 at least" in lines
    assert lines[-1] == "wrote out" and len(read_video("out")[0]) == 3 * 2
    assert "1 of 6 videos of base have no partner in student: alone" in err and "comparing: 5/5" in err


def test_all_that_are_there_leave_none_out(evdit, runs: None):
    """Of fewer than the limit."""
    out = evdit("compare", "base", "student", "-o", "out")[1]
    assert "\npairs: 5, 5 shown\n" in out


def test_json_on_stdout(evdit, runs: None):
    """One object with its schema: every pair, with its files and numbers, and what was written."""
    flags = ["--label", "A", "--label", "B", "--limit", "2", "--json"]
    code, out, _ = evdit("compare", "base", "student", *flags, "-o", "out.mp4", "--sheet", "sheet.png")
    content = json.loads(out)
    assert (code, content["schema"], content["runs"]) == (DONE, "evdit.compare/1", ["A", "B"])
    assert (content["pairs"], content["shown"], content["left_out"]) == (5, 2, 3)
    assert content["missing"] == {"B": {"lacks": ["alone"], "alone": []}}
    assert content["large_motion"] == {"pairs": 1, "from": 1.0}
    assert (content["output"], content["sheet"]) == ("out.mp4", "sheet.png")
    assert [each["seed"] for each in content["videos"]] == [1, 4, 3, 2, 0]
    assert content["videos"][1] == {
        "prompt": "prompt 4",
        "seed": 4,
        "shown": True,
        "motion": 1.0,
        "large_motion": True,
        "frames": 2,
        "difference": 5 / 255,
        "differences": {"B": 5 / 255},
        "files": {"A": str(Path("base/4")), "B": str(Path("student/4"))},
    }
    assert json.loads(evdit("compare", "base", "student", "-o", "out.gif", "--json")[1])["sheet"] is None


def test_as_a_process(runs: None):
    """What a person types, with both files."""
    command = [sys.executable, "-m", "vdit_cli", "compare", "base", "student", "-o", "out.mp4", "--sheet", "sheet.png"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert done.returncode == DONE, done.stderr
    assert done.stdout.endswith("wrote out.mp4\nwrote sheet.png\n")
    assert Path("out.mp4").read_bytes()[4:8] == b"ftyp" and Path("sheet.png").read_bytes()[1:4] == b"PNG"


def test_a_prompt_can_not_steer_the_terminal(evdit):
    """Nor break the table; a long one is cut there."""
    for run in ("a", "b"):
        plant(run, "0", plain_video([1]), "red\x1b[31m\nring " + "long " * 40)
    out = evdit("compare", "a", "b", "-o", "out")[1]
    line = out.splitlines()[1]
    assert "\x1b" not in out and r"red\u001b[31m ring long" in line and line.endswith("...") and len(line) < 120


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["base", "student"], "missing option '-o'"),
        (["base", "-o", "out"], "there is one run"),
        (["base", "absent", "-o", "out"], "absent is not there"),
        (["base", "empty", "-o", "out"], "empty holds no video"),
        (["base", "student", "-o", "out.png"], "out.png is no known kind of video"),
        (["base", "student", "-o", "taken.mp4"], "taken.mp4 exists"),
        (["base", "student", "-o", "out", "--sheet", "sheet.jpg"], "sheet.jpg is no place for a picture"),
        (["base", "student", "-o", "out", "--sheet", "taken.png"], "taken.png is there already"),
        (["base", "student", "-o", "out", "--limit", "0"], "input should be greater than or equal to 1"),
        (["base", "student", "-o", "out", "--label", "x"], "1 labels don't fit 2 runs"),
    ],
)
def test_what_can_not_be_is_refused(evdit, runs: None, flags: list[str], told: str):
    """Exit 2, before any work, and nothing is written."""
    Path("empty").mkdir()
    for name in ("taken.mp4", "taken.png"):
        Path(name).write_text("old", encoding="utf-8")
    before = sorted(Path().rglob("*"))
    code, out, err = evdit("compare", *flags)
    assert (code, out) == (USAGE, "") and told in err and "comparing" not in err
    assert sorted(Path().rglob("*")) == before and Path("taken.mp4").read_text(encoding="utf-8") == "old"


def test_overwrite_replaces_both(evdit, runs: None):
    """The video and the sheet."""
    for name in ("out.mp4", "sheet.png"):
        Path(name).write_text("old", encoding="utf-8")
    command = ["compare", "base", "student", "-o", "out.mp4", "--sheet", "sheet.png", "--overwrite"]
    assert evdit(*command)[0] == DONE
    assert all(Path(name).stat().st_size > 100 for name in ("out.mp4", "sheet.png"))


def test_the_help_page_says_how_pairs_are_chosen(evdit):
    """The measure, the class of motion, and an example."""
    code, out, _ = evdit("compare", "--help")
    assert code == DONE and "mean absolute one to the first run's video" in " ".join(out.split())
    assert "The quarter of pairs whose first video moves most" in " ".join(out.split())
    assert out.split("Example:\n")[1].startswith("  evdit compare runs/base runs/student -o side-by-side.mp4")
