"""`evdit analyze` as a person runs it, on the tiny model with random weights."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.tiny_pipeline import write_pipeline
from vdit_cli.analysis.findings import findings
from vdit_cli.analysis.results import Analysis
from vdit_cli.cli.console import Console
from vdit_cli.errors import INTERRUPTED, USAGE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny pipeline's folder."""
    return str(write_pipeline(tmp_path_factory.mktemp("tiny"), steps=4))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("a large red circle moving right\na small blue square over black\n", encoding="utf-8")
    return str(path)


def test_a_run_and_the_same_command_again(evdit, model: str, prompts: str):
    """The folder on stdout, analysis.json in it; a second start is done already and prints the same."""
    command = ["analyze", "--model", model, "--prompts-file", prompts, "-o", "run", "--at", "0,1", "--device", "cpu"]
    code, out, err = evdit(*command)
    assert code == 0, err
    assert out.splitlines()[-1] == "run" and "3 trajectories (2 prompts, 2 seeds) to step 4 of 4" in err
    found = Analysis.read("run")
    assert [each.site for each in found.layers] == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
    assert len(found.samples) == 6 and found.settings.device == "cpu"
    told = json.loads(Path("run/run.json").read_text("utf-8"))
    assert (told["state"], told["command"]) == ("done", "analyze") and {"analysis", "report"} <= set(told["outputs"])
    assert "<svg" in Path("run/report.html").read_text("utf-8")
    asked = f"evdit analyze --model {model} --prompts-file {prompts} --at 0,1 --device cpu"
    assert sorted(found.settings.command.split()) == sorted(asked.split())

    before = Path("run/analysis.json").read_bytes()
    code, again, err = evdit(*command)
    assert code == 0 and "run is done already" in err and again == out
    assert Path("run/analysis.json").read_bytes() == before


def test_json(evdit, model: str, prompts: str):
    """One object with the schema, the folder, what was found and the whole analysis."""
    few = ["--num-prompts", "1", "--seeds", "0", "--at", "0", "--layers", "1"]
    code, out, err = evdit("analyze", "--model", model, "--prompts-file", prompts, "-o", "run", "--json", *few)
    assert code == 0, err
    content = json.loads(out)
    assert (content["schema"], content["path"]) == ("evdit.analyze/1", "run")
    (layer,) = content["analysis"]["layers"]
    assert (layer["layer"], layer["stability"], layer["ratio_spread"]) == (1, [], 0)
    assert content["analysis"] == json.loads(Path("run/analysis.json").read_text("utf-8"))
    assert content["findings"]["has_pattern"] is False


def test_random_weights_have_little_structure(evdit, model: str, prompts: str):
    """Tiles of all distances hold about the same, so that the ratio stays near 1."""
    code, _, err = evdit("analyze", "--model", model, "--prompts-file", prompts, "-o", "run", "--seeds", "0")
    assert code == 0, err
    found = Analysis.read("run")
    assert all(0.7 < layer.ratio < 1.2 for layer in found.layers)
    assert not findings(found).has_pattern


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--layers", "7"], "unknown layer '7': the model has layers 0 to 1\n  from:  --layers 7\n  try:   --layers 1"),
        (["--num-prompts", "0"], "num_prompts is 0: it must be a whole number or null, at least 1"),
        (["--num-prompts", "3"], "3 prompts were asked for"),
        (["--frames", "1"], "1 frames are one latent frame of tiny"),
        (["--at", "2"], "'2' is no share of the trajectory"),
        (["--masks", "9:9"], "is for 18 frames"),
        (["--set", "analyze.row=3"], "analyze.rows"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_bad_flags_are_refused(evdit, model: str, prompts: str, flags: list[str], says: str):
    """Exit 2, what is wrong, and no folder."""
    code, out, err = evdit("analyze", "--model", model, "--prompts-file", prompts, "-o", "run", *flags)
    assert code == USAGE and says in err and out == "" and not Path("run").exists()


def test_another_models_run_is_refused(evdit, model: str, prompts: str, tmp_path: Path):
    """By its path or by its weights."""
    few = ["--prompts-file", prompts, "-o", "run", "--num-prompts", "1", "--seeds", "0", "--at", "0"]
    assert evdit("analyze", "--model", model, *few)[0] == 0
    other = write_pipeline(tmp_path / "other", seed=1, steps=4)
    code, _, err = evdit("analyze", "--model", str(other), *few)
    assert code == USAGE and re.search(r"run was made by another recipe: model: was .* weights: was", err)


def test_ctrl_c_then_the_same_command(evdit, model: str, prompts: str, monkeypatch: pytest.MonkeyPatch):
    """Pressed in the second of two trajectories: exit 130, the run interrupted; the same command ends it."""
    command = ["analyze", "--model", model, "--prompts-file", prompts, "-o", "run", "--seeds", "0", "--device", "cpu"]
    done, advance = [0], Console.advance

    def advance_and_press(self: Console, note: str = "") -> None:
        advance(self, note)
        done[0] += 1
        if done[0] == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Console, "advance", advance_and_press)
        code, _, err = evdit(*command)
    assert code == INTERRUPTED, err
    assert "1 of 2 trajectories are finished" in err and "the same command again" in err
    assert json.loads(Path("run/run.json").read_text("utf-8"))["state"] == "interrupted"
    assert done[0] == 6
    code, _, err = evdit(*command)
    assert code == 0, err
    assert len(Analysis.read("run").samples) == 6
