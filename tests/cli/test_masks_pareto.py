"""`evdit masks pareto` and the picture of `evdit masks show`: what comes out, and what is refused before any work."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.search.made import table_of, times_of
from vdit_cli.errors import DONE, USAGE
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search.choose_again import choose_again
from vdit_cli.search.plan_costs import call_of
from vdit_cli.timing import Silent

Evdit = Callable[..., tuple[int, str, str]]
PNG = b"\x89PNG"


@pytest.fixture
def run() -> Path:
    """A finished search of two layers by the relative score."""
    Path("measured").mkdir()
    table_of([[0, 0.02, 0.06, 0.3], [0, 0.15, 0.3, 0.9]]).write("measured")
    options = SearchMasksOptions(sensitivity="measured", target_speedup=1.5, by="relative")
    return choose_again(options, Path("run"), Silent()).folder


def test_the_front_is_drawn_and_written(evdit: Evdit, run: Path):
    """By the score of the chosen plan, unless another is asked for."""
    code, out, err = evdit("masks", "pareto", str(run), "-o", "front.png")
    assert code == DONE and err.startswith("wrote front.png: ") and err.endswith(" plans that no other beats\n")
    assert out.splitlines()[0] == "summed relative score" and "chosen" in out.splitlines()[-1]
    assert Path("front.png").read_bytes()[:4] == PNG
    _, out, err = evdit("masks", "pareto", str(run), "--by", "attention")
    assert out.splitlines()[0] == "summed attention score" and err == ""


def test_the_front_as_json(evdit: Evdit, run: Path):
    code, out, err = evdit("masks", "pareto", str(run), "--json")
    told = json.loads(out)
    assert (code, err, told["schema"], told["by"], told["costs"]) == (
        DONE,
        "",
        "evdit.masks-pareto/1",
        "relative",
        "kept share",
    )
    assert told["plans"] == len(told["front"]) and told["left_out"] == 0
    assert [each["mask"] for each in told["uniform"]] == ["8:0", "4:4", "2:6", "1:7"]
    assert told["chosen"]["loss"] == json.loads((run / "plan.json").read_text())["predicted"]["loss"]
    assert told["r_sweep"][0]["r"] == 0


def test_the_front_by_seconds(evdit: Evdit, run: Path):
    """Of a cost table, whose device is named; masks cost by their time there, not by their tiles."""
    table = table_of([[0, 0.02, 0.06, 0.3], [0, 0.15, 0.3, 0.9]])
    own = call_of(table)
    Path("costs.json").write_text(
        json.dumps(times_of(own, {"8:0": 1.0, "4:4": 0.75, "2:6": 0.25, "1:7": 0.5}).content()), encoding="utf-8"
    )
    code, out, err = evdit("masks", "pareto", str(run), "--costs", "costs.json", "--json")
    told = json.loads(out)
    assert code == DONE and "on a GPU" in told["costs"] and err == f"costs: {told['costs']}\n"
    assert {each["mask"]: each["cost"] for each in told["uniform"]} == {"8:0": 2, "4:4": 1.5, "2:6": 0.5, "1:7": 1}
    code, out, err = evdit("masks", "pareto", str(run), "--costs", "costs.json")
    assert code == DONE and "attention, seconds" in out


def test_a_table_alone_is_enough(evdit: Evdit, run: Path):
    """That of a search that was stopped before it chose, too."""
    code, out, err = evdit("masks", "pareto", "measured")
    assert (code, err) == (DONE, "no plan lies beside measured/sensitivity.json: none is marked as chosen\n")
    assert "chosen" not in out and out.startswith("summed attention score")


@pytest.mark.parametrize(
    ("flags", "what", "step"),
    [
        (["run", "-o", "front.svg"], "front.svg is no place for a picture", "-o front.png"),
        (["run", "-o", "measured"], "measured is no place for a picture", "-o measured/picture.png"),
        (["run", "-o", "there.png"], "there.png is there already", "--overwrite"),
        (["run", "-o", "folder.png"], "folder.png is a folder", "another name with -o"),
        (["run", "--by", "outputs"], "unknown score 'outputs'", "--by output"),
        (["run", "--by", "output"], "the score 'output' was not measured", "--by attention"),
        (["run", "--costs", "none.json"], "none.json", ""),
        (["run", "--costs-at", "shapes"], "--costs-at shapes is about seconds", "no --costs-at"),
        (["nothing"], "nothing", ""),
        (["run/plan.json"], "unknown schema 'evdit.mask-plan/", "the folder of a run of `evdit search-masks`"),
    ],
)
def test_what_is_refused(evdit: Evdit, run: Path, flags, what, step):
    """Nothing is written, and what is there stays."""
    Path("there.png").write_text("mine", encoding="utf-8")
    Path("folder.png").mkdir()
    code, out, err = evdit("masks", "pareto", *flags)
    assert (code, out) == (USAGE, "") and what in err and step in err
    assert Path("there.png").read_text(encoding="utf-8") == "mine" and not Path("front.png").exists()


def test_another_picture_is_replaced_where_asked(evdit: Evdit, run: Path):
    Path("front.png").write_text("old", encoding="utf-8")
    code, _, err = evdit("masks", "pareto", str(run), "-o", "front.png", "--overwrite")
    assert code == DONE, err
    assert Path("front.png").read_bytes()[:4] == PNG


def test_show_draws_a_picture_beside_its_rows(evdit: Evdit, run: Path):
    code, out, err = evdit("masks", "show", str(run), "-o", "plan.png")
    assert (code, err) == (DONE, "wrote plan.png\n") and out == evdit("masks", "show", str(run))[1]
    assert Path("plan.png").read_bytes()[:4] == PNG
    assert json.loads(evdit("masks", "show", str(run), "-o", "two.png", "--json")[1])["schema"] == "evdit.masks/1"
    code, out, err = evdit("masks", "show", str(run), "-o", "plan.png")
    assert (code, out) == (USAGE, "") and "plan.png is there already" in err


def test_neither_loads_torch(run: Path):
    """They are looked at on machines without any."""
    lines = [
        "import sys",
        "from vdit_cli.cli.app import main",
        "code = main(['masks', *sys.argv[1:]])",
        "assert not {'torch', 'diffusers', 'scipy'} & set(sys.modules), 'loaded'",
        "sys.exit(code)",
    ]
    for words in (["pareto", str(run), "-o", "front.png"], ["show", str(run), "-o", "plan.png"]):
        done = subprocess.run([sys.executable, "-c", "\n".join(lines), *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
