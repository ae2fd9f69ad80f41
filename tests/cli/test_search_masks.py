"""`evdit search-masks` as a person runs it, on the tiny model with random weights."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.closeness import assert_close
from tests.forked import run_forked
from tests.tiny_pipeline import write_pipeline
from vdit_cli.cli.console import Console
from vdit_cli.errors import USAGE
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.plan import MaskPlan


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny pipeline's folder."""
    return str(write_pipeline(tmp_path_factory.mktemp("tiny"), steps=4))


@pytest.fixture
def asked(model: str, tmp_path: Path) -> list[str]:
    """The command, with two prompts."""
    path = tmp_path / "prompts.txt"
    path.write_text("a large red circle moving right\na small blue square over black\n", encoding="utf-8")
    return ["search-masks", "--model", model, "--prompts-file", str(path), "--at", "0,1", "--device", "cpu"]


def test_search_choose_again_and_generate(evdit, asked: list[str], model: str):
    """The plan of a run is one that generate wears and masks shows; a choice from its table needs no model."""
    code, out, err = evdit(*asked, "--r", "1e-9", "-o", "run")
    assert code == 0, err
    assert out.splitlines()[-1] == "run" and "2 prompts with 1 seed to step 4 of 4" in err
    assert MaskPlan.read("run").is_dense and MaskPlan.read("run").searched_on == SensitivityTable.read("run").weights
    code, again, err = evdit(*asked, "--r", "1e-9", "-o", "run")
    assert code == 0 and "run is done already" in err and again == out

    code, out, err = evdit("search-masks", "--sensitivity", "run", "--r", "1e9", "-o", "sparse")
    assert code == 0, err
    plan = MaskPlan.read("sparse")
    assert {mask.global_frames for mask in plan.masks} == {(0,)}
    assert evdit("masks", "show", "sparse")[0] == 0
    code, _, err = evdit("generate", "a large red circle", "--model", model, "--masks", "sparse", "-o", "sparse.gif")
    assert code == 0, err
    assert json.loads(Path("sparse.json").read_text("utf-8"))["ran"]["plan"] == plan.digest


def test_json(evdit, asked: list[str]):
    """One object with the schema, the folder and the plan."""
    code, out, err = evdit(*asked, "--num-prompts", "1", "--json", "-o", "run")
    assert code == 0, err
    content = json.loads(out)
    assert (content["schema"], content["path"], content["met"]) == ("evdit.search-masks/1", "run", True)
    assert content["plan"] == MaskPlan.read("run").content() and content["coin_flips"] == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--r", "-1"], "-1"),
        (["--r", "nan"], "nan"),
        (["--r", "inf"], "inf"),
        (["--r", "0.1", "--max-loss", "1"], "2 rules"),
        (["--masks", ""], "mask"),
        (["--masks", "3:0"], "nothing to choose"),
        (["--target-speedup", "0.5"], "0.5"),
        (["--by", "guess"], "guess"),
        (["--fix", "7=dense"], "no layer 7"),
        (["--latency", "0.1"], "--latency 0.1 is about seconds"),
        (["--latency", "0"], "search_masks.latency is 0.0: it must be a finite number or null, at least 1e-09"),
        (["--costs-at", "shapes"], "--costs-at shapes is about seconds"),
        (["--step-rest", "0.1"], "--step-rest 0.1 is about seconds"),
        (["--costs", "nowhere.json"], "nowhere.json can't be read"),
        (["--latency", "nan"], "nan"),
        (["--sensitivity", "nowhere", "--model", "x"], "no effect"),
    ],
)
def test_bad_input(evdit, asked: list[str], flags: list[str], told: str):
    """Exit 2, the value named, and no folder."""
    command = ["search-masks"] if "--sensitivity" in flags else asked
    code, _, err = evdit(*command, *flags, "-o", "run")
    assert code == USAGE and told in err and not Path("run").exists()


@pytest.mark.numerical
def test_by_the_times_of_this_machine(evdit, asked: list[str]):
    """The error says what measures them, that command's run is what --costs takes, and the plan's step is foretold."""
    code, _, err = evdit(*asked, "--num-prompts", "1", "-o", "run")
    assert code == 0, err
    Path("costs.json").write_text(NO_TIMES, encoding="utf-8")
    again = ["search-masks", "--sensitivity", "run"]
    code, _, err = evdit(*again, "--costs", "costs.json")
    assert code == USAGE and "the times of a GPU do not tell" in err
    command = err.split("try:   evdit ")[1].split()
    code, _, err = evdit(*command, "--kernels", "sdpa", "--device", "cpu", "--seconds", "0", "-o", "bench")
    assert code == 0, err
    code, out, err = evdit(*again, "--costs", "bench", "--latency", "1e-9", "--step-rest", "1", "--json", "-o", "fast")
    assert code == 0, err
    content = json.loads(out)
    predicted = content["plan"]["predicted"]
    assert not content["met"] and predicted["attention_seconds"] > 0 and predicted["costs"].startswith("seconds of")
    seconds = predicted["attention_seconds"]
    assert_close(predicted["step_speedup"], (1 + seconds * predicted["attention_speedup"]) / (1 + seconds))


NO_TIMES = json.dumps(
    {
        "schema": "evdit.cost-table/1",
        "machine": {"device": "a GPU", "torch_version": "2", "triton_version": "3", "evdit_version": "1"},
        "rows": [],
    }
)


def killed_in_the_second_pair(command: list[str]) -> None:
    """The command, killed by the kernel at the sixth step, the second of the second prompt."""
    from vdit_cli.cli.app import main

    done, advance = [0], Console.advance

    def advance_and_die(self: Console, note: str = "") -> None:
        advance(self, note)
        done[0] += 1
        if done[0] == 1 + 6:  # one for reading the prompts
            os.kill(os.getpid(), signal.SIGKILL)

    Console.advance = advance_and_die
    main(command)


def test_a_killed_search_goes_on(evdit, asked: list[str]):
    """SIGKILL in the second pair: the first stays, and the table is that of a search nothing disturbed."""
    ended = run_forked(1, killed_in_the_second_pair, [*asked, "-o", "run"])
    assert ended.codes == [-signal.SIGKILL], ended.err
    left = {path: path.stat().st_mtime_ns for path in Path("run/samples").iterdir()}
    assert [path.name for path in left] == ["pair-0000.json"]
    code, _, err = evdit(*asked, "-o", "run")
    assert code == 0 and "1 of 2 trajectories in run are done already" in err
    assert {path: path.stat().st_mtime_ns for path in left} == left
    code, _, err = evdit(*asked, "-o", "undisturbed")
    assert code == 0 and SensitivityTable.read("run").digest == SensitivityTable.read("undisturbed").digest
