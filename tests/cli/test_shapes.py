"""The model of the package, as `make demo` runs it: what it generates shows its prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vdit_cli.data.shapes_prompts import EXAMPLE_PROMPT
from vdit_cli.errors import DONE

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = ROOT / "recipes" / "prompts" / "shapes-held-out.txt"


def all_five_right(evdit, path: str) -> int:
    """How many of the videos at `path` show all five attributes of their prompt."""
    code, out, err = evdit("score", path, "--json")
    assert code == DONE, err
    return json.loads(out)["accuracy"]["all five"]["right"]


def test_a_video_shows_its_prompt(evdit):
    """The prompt of the demo, in fewer steps than its 50."""
    flags = ("generate", EXAMPLE_PROMPT, "--steps", "12")
    code, _, err = evdit(*flags, "-o", "circle.mp4")
    assert code == DONE and "warning" not in err, err
    assert all_five_right(evdit, "circle.mp4") == 1


@pytest.mark.slow
def test_twenty_held_out_prompts(evdit, tmp_path: Path):
    """The first 20 held-out prompts at seeds 0 to 19 with the demo's settings: all five right in 18 or more."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()[:20]
    (tmp_path / "twenty.txt").write_text("\n".join(lines), encoding="utf-8")
    code, _, err = evdit("generate", "--prompts-file", "twenty.txt", "-o", "videos")
    assert code == DONE, err
    seeds = [
        json.loads(path.read_text(encoding="utf-8"))["asked"]["seed"]
        for path in sorted(Path("videos").glob("00*.json"))
    ]
    assert seeds == list(range(20))
    assert all_five_right(evdit, "videos") >= 18
