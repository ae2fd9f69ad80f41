"""Where a run stands, told from its files: states, how far, why, and a next command that works."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.conftest import Whole
from tests.pipeline.tiny import STAGES
from vdit_cli.artifacts.digest import file_digests
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.errors import EvditError
from vdit_cli.pipeline.status import Progress, StageState, status

LOOK = """
import sys
from vdit_cli.cli.app import main
code = main(["status", sys.argv[1]])
print(code, *[name for name in ("torch", "numpy") if name in sys.modules])
"""


def test_a_finished_run_is_told_stage_by_stage(whole: Whole):
    """All units, what was made, and a command that uses the latest student."""
    run = whole.copied()
    before = file_digests(run)
    found = status(run)
    assert (found.command, found.state, found.failure) == ("run", "done", None)
    assert [(each.command, each.state) for each in found.stages] == [(stage, "done") for stage in STAGES]
    assert [each.progress for each in found.stages] == [
        Progress(16, 16, "clips"),
        Progress(3, 3, "iterations"),
        Progress(2, 2, "trajectories"),
        Progress(3, 3, "iterations"),
        Progress(2, 2, "videos"),
        None,
    ]
    assert all(each.seconds is not None and each.seconds > 0 for each in found.stages)
    assert found.stages[2].outputs == ("run/search-masks/sensitivity.json", "run/search-masks/plan.json")
    assert found.next_command.endswith(" --checkpoint run/distill-kd")
    assert file_digests(run) == before


def test_units_are_those_that_are_done(whole: Whole):
    """A shard less, a line of metrics less and one cut short, a trajectory and a video less."""
    run = whole.copied()
    (run / "prepare-data" / "shards" / "000001.json").unlink()
    metrics = run / "distill-mlcd" / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines()
    metrics.write_text("\n".join(lines[:2]) + "\n" + lines[2][:9], encoding="utf-8")
    (run / "search-masks" / "samples" / "pair-0001.json").unlink()
    manifest = json.loads((run / "generate" / "run.json").read_text(encoding="utf-8"))
    del manifest["outputs"][next(role for role in manifest["outputs"] if role.startswith("video 0001"))]
    (run / "generate" / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = [each.progress.done for each in status(run).stages if each.progress]
    assert done == [8, 2, 1, 3, 1]


def test_students_of_several_steps_count_together(tmp_path: Path):
    request = Request("distill-mlcd", "shapes", {"steps": "8, 4", "iterations": 10})
    with RunDir.create(tmp_path / "run", request):
        for folder, line in (("steps-8", 10), ("steps-4", 5)):
            (tmp_path / "run" / folder).mkdir()
            (tmp_path / "run" / folder / "metrics.jsonl").write_text(f'{{"iteration": {line}}}\n', encoding="utf-8")
        assert status(tmp_path / "run").stages[0].progress == Progress(15, 20, "iterations")


def test_a_live_run_is_told_from_a_dead_one_by_its_lock(tmp_path: Path):
    """The state in run.json is the same; so is the failure of one that ended."""
    path = tmp_path / "run"
    request = Request("analyze", "shapes", {"at": "0"}, origins={"at": "--at 0"})
    with RunDir.create(path, request):
        left = (path / "run.json").read_bytes()
        live = status(path)
        assert (live.state, live.stages[0].state) == ("running", "running")
        assert live.next_command == f"evdit status {path}"
    (path / "run.json").write_bytes(left)
    dead = status(path)
    assert dead.stages[0].state == "interrupted"
    assert (dead.state, dead.next_command) == ("interrupted", f"evdit analyze --at 0 -o {path}")
    with pytest.raises(EvditError), RunDir.open(path):
        raise EvditError("no luck", exit_code=1)
    assert (status(path).state, status(path).failure) == ("failed", "no luck")


def test_seconds_of_several_starts_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By a clock that ticks once a look."""
    ticks = iter(range(0, 1000, 7))
    monkeypatch.setattr("vdit_cli.artifacts.run_dir.time.monotonic", lambda: float(next(ticks)))
    request = Request("analyze", "shapes", {"at": "0"})
    for count in (1, 2, 3):
        with RunDir.start(tmp_path / "run", request):
            pass
        assert status(tmp_path / "run").stages[0].seconds == 7 * count


def test_the_next_command_goes_on(whole: Whole, evdit):
    """It is typed as it stands, of the whole and of a stage in it alike, and the run is finished then."""
    run = whole.copied()
    for stage in ("generate", "score"):
        shutil.rmtree(run / stage)
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**manifest, "state": "interrupted"}), encoding="utf-8")
    found = status(run)
    assert found.stages[4] == StageState("generate", "run/generate", "not begun")
    assert status(run / "search-masks").next_command == found.next_command
    program, *words = shlex.split(found.next_command)
    assert program == "evdit" and sorted(words) == sorted(whole.words)
    assert evdit(*words)[0] == 0 and status(run).state == "done"


def test_the_next_command_of_one_command_goes_on(tmp_path: Path):
    """Its recipe once, settings quoted, flags as they were, the prompts of generate."""
    origins = {"steps": "my recipe.yaml:2 generate.steps", "seed": "--seed 4", "num": "my recipe.yaml:3 generate.num"}
    origins |= {"negative": '--set "generate.negative=a b"'}
    request = Request("generate", "shapes", {"prompts": ["a red ring", "a cross"], "num": 1}, origins=origins)
    with RunDir.create(tmp_path / "run", request):
        pass
    manifest = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "run" / "run.json").write_text(json.dumps({**manifest, "state": "failed"}), encoding="utf-8")
    words = shlex.split(status(tmp_path / "run").next_command)
    assert words == ["evdit", "generate", "a red ring", "a cross", "--config", "my recipe.yaml", "--seed", "4"] + [
        "--set",
        "generate.negative=a b",
        "-o",
        str(tmp_path / "run"),
    ]


def test_looking_needs_no_torch(whole: Whole):
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(whole.path)], capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.splitlines()[-1] == "0"


def test_what_is_no_run_is_refused(tmp_path: Path, evdit):
    code, out, err = evdit("status", "nowhere")
    assert (code, out) == (2, "") and "nowhere is no run: there is no such folder" in err
    (tmp_path / "empty").mkdir()
    code, out, err = evdit("status", str(tmp_path / "empty"))
    assert (code, out) == (2, "") and "empty is no run: it has no run.json" in err


def test_a_stage_outside_the_run_is_refused(whole: Whole):
    """No path of a run.json leads out of its folder."""
    run = whole.copied()
    manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**manifest, "stages": [{"folder": "../other"}]}), encoding="utf-8")
    with pytest.raises(EvditError, match="leaves the run's folder"):
        status(run)


@pytest.mark.parametrize(
    ("command", "values", "metrics", "where", "words"),
    [
        ("distill-mlcd", {}, "", "run.json values", "does not hold the values of evdit distill-mlcd: KeyError"),
        ("prepare-data", {"count": [], "shard_clips": 3}, "", "run.json values", "the values of evdit prepare-data"),
        ("generate", {"prompts": 3, "num": 1}, "", "run.json values", "the values of evdit generate: TypeError"),
        (
            "distill-kd",
            {"iterations": 3},
            "[" * 100_000 + "\n",
            "metrics.jsonl last line",
            "not a line: it is nested in more than 64 levels",
        ),
        (
            "distill-kd",
            {"iterations": 3},
            '{"loss": 1}\n',
            "metrics.jsonl last line",
            "iteration is missing: a line needs it",
        ),
        (
            "distill-kd",
            {"iterations": 3},
            '{"iteration": "2"}\n',
            "metrics.jsonl last line iteration",
            "a whole number",
        ),
    ],
)
def test_files_that_tell_nothing_are_named(
    command: str, values: dict, metrics: str, where: str, words: str, tmp_path: Path
):
    """Values of another command, and a last line that is none."""
    with RunDir.create(tmp_path / "run", Request(command, "shapes", values)):
        (tmp_path / "run" / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    with pytest.raises(EvditError) as caught:
        status(tmp_path / "run")
    assert words in caught.value.what and caught.value.where == str(tmp_path / "run" / where)


@pytest.mark.parametrize(
    ("command", "step"),
    [
        ("analyze", "evdit search-masks --model 'a $b'"),
        ("train-shapes", 'evdit generate "a small blue ring bouncing over a navy background" --model run/model'),
        ("bench-model", None),
    ],
)
def test_a_finished_run_does_not_advise_to_look_again(
    command: str, step: str | None, tmp_path: Path, monkeypatch, evdit
):
    """It tells what it is good for, or nothing."""
    monkeypatch.chdir(tmp_path)
    with RunDir.create(Path("run"), Request(command, "a $b", {})):
        pass
    assert status(Path("run")).next_command == step
    assert ("next: " in evdit("status", "run")[1]) == (step is not None)
