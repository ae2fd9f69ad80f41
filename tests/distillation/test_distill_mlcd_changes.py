"""A distillation gone on with under other values: what its card tells of it, and the way back from a longer one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distillation.small_mlcd import StopsAt, distill_small
from tests.tiny_pipeline import copied
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.errors import USAGE, EvditError, Interrupted
from vdit_cli.timing import Silent

WEIGHTS = "student/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def finished(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a finished student of 6 iterations."""
    run = tmp_path_factory.mktemp("finished") / "run"
    distill_small(*made, run)
    return run


class StopsBeforeTheSecond(Silent):
    """Ctrl-C between the students of 4 and of 2 steps."""

    def stage(self, label: str, total: int) -> None:
        """Raise before the second."""
        if label == "student of 2 steps":
            raise Interrupted("stopped")


def card(student: Path) -> str:
    """The line of a student's card that tells what changed."""
    lines = (student / "README.md").read_text(encoding="utf-8").splitlines()
    return "".join(line for line in lines if line.startswith("| changed on the way |"))


def test_the_card_tells_what_changed_on_the_way(made: tuple[Path, Path], finished: Path, tmp_path: Path):
    """Each value, from what to what, at which iteration, and a run made longer; what was refused is not told."""
    assert card(finished / "student") == ""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(2))
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(3), allow_changed=True, learning_rate=1e-3, batch_size=2)
    with pytest.raises(EvditError, match="nothing would be left to train"):
        distill_small(*made, run, allow_changed=True, learning_rate=1e-4, batch_size=2, iterations=5)
    told = "| changed on the way | `batch_size` from 4 to 2 at iteration 2; `learning_rate` from 0.003 to 0.001 at "
    student = distill_small(*made, run, learning_rate=1e-3, batch_size=2)
    assert card(student) == told + "iteration 2 |"
    distill_small(*made, run, allow_changed=True, learning_rate=1e-3, batch_size=2, iterations=8)
    assert card(student) == told + "iteration 2; `iterations` from 6 to 8 at iteration 6 |"
    assert "8 iterations of 2 clips" in (student / "README.md").read_text(encoding="utf-8")
    whole = (run / "README.md").read_text(encoding="utf-8")
    assert "- `iterations` from 6 to 8 at iteration 6 of the student of 4 steps" in whole


def test_each_student_s_card_tells_its_own_changes(made: tuple[Path, Path], tmp_path: Path):
    """Not what another one had, nor what was changed before its first iteration."""
    run = tmp_path / "run"
    for progress, weight_cap in ((StopsAt(2), 5.0), (StopsBeforeTheSecond(), 2.0), (StopsAt(1), 3.0)):
        with pytest.raises(Interrupted):
            distill_small(*made, run, progress, allow_changed=True, steps="4,2", weight_cap=weight_cap)
    last = distill_small(*made, run, allow_changed=True, steps="4,2", weight_cap=4.0)
    assert card(run / "steps-4" / "student") == "| changed on the way | `weight_cap` from 5.0 to 2.0 at iteration 2 |"
    assert card(last) == "| changed on the way | `weight_cap` from 3.0 to 4.0 at iteration 1 |"
    places = [(each["part"], each["iteration"]) for each in RunDir.open(run).manifest["changes"]]
    assert places == [("student of 4 steps", 2), ("student of 2 steps", 0), ("student of 2 steps", 1)]


def test_a_finished_student_outlives_a_longer_training_that_is_not_done(
    made: tuple[Path, Path], finished: Path, tmp_path: Path
):
    """It is a checkpoint; its own command finds it, changes nothing and says how to go on with the other."""
    run = copied(finished, tmp_path / "run")
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(1), allow_changed=True, iterations=8)
    assert RunDir.open(run).state() == "interrupted"
    assert "What came out is of the run as it was finished" in (run / "README.md").read_text(encoding="utf-8")
    distill_small(*made, tmp_path / "next", checkpoint=str(run), steps="2", iterations=1)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for allow_changed in (False, True):
        progress = Silent()
        assert distill_small(*made, run, progress, allow_changed) == run / "student"
        told = f"{run} is done already: its student of 6 iterations. It is being made longer, which is interrupted: "
        assert progress.lines == [told + "--set distill_mlcd.iterations=8 goes on with that"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    with pytest.raises(Interrupted):  # longer still, from there
        distill_small(*made, run, StopsAt(1), allow_changed=True, iterations=9)
    assert distill_small(*made, run) == run / "student"
    run.joinpath("run.json").write_bytes(before[run / "run.json"])
    distill_small(*made, run, StopsAt(9), iterations=8)
    longer, straight = load_file(run / WEIGHTS), load_file(finished / WEIGHTS)
    assert any(not longer[name].equal(straight[name]) for name in longer)
    assert "finished" not in json.loads((run / "run.json").read_text(encoding="utf-8"))
    with pytest.raises(EvditError, match="iterations: was 8, is 6") as caught:
        distill_small(*made, run)
    assert caught.value.exit_code == USAGE


def test_a_finished_student_that_is_damaged_is_not_handed_out(made: tuple[Path, Path], finished: Path, tmp_path: Path):
    """The longer training makes it anew, and is named with what it is asked for."""
    run = copied(finished, tmp_path / "run")
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(1), allow_changed=True, iterations=8)
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-9])
    for allow_changed in (False, True):
        with pytest.raises(EvditError, match="is being made longer, and what it had made before is damaged") as caught:
            distill_small(*made, run, allow_changed=allow_changed)
        assert caught.value.next_steps[0].startswith("the command that makes it longer (iterations=8)")
    assert distill_small(*made, run, iterations=8) == RunDir.open(run).find("transformer")


def test_how_to_go_on_with_a_longer_training_names_all_its_values(
    made: tuple[Path, Path], finished: Path, tmp_path: Path
):
    """Also what was changed after it was begun: what is told goes on when it is pasted."""
    run = copied(finished, tmp_path / "run")
    more = {"iterations": 9, "learning_rate": 1e-3, "teacher_points": (2, 3)}
    for count in (1, 3):
        with pytest.raises(Interrupted):
            distill_small(*made, run, StopsAt(1), allow_changed=True, **dict(list(more.items())[:count]))
    progress = Silent()
    assert distill_small(*made, run, progress) == run / "student"
    pasted = shlex.split(progress.lines[0].split("interrupted: ")[1].removesuffix(" goes on with that"))
    values = {key.removeprefix("distill_mlcd."): json.loads(text) for key, text in (e.split("=") for e in pasted[1::2])}
    assert values == {**more, "teacher_points": [2, 3]} and set(pasted[::2]) == {"--set"}
    values["teacher_points"] = tuple(values["teacher_points"])
    assert distill_small(*made, run, **values) == run / "student"


def test_a_change_is_told_at_the_iteration_that_it_went_on_from(made: tuple[Path, Path], tmp_path: Path):
    """Not at that of a newer checkpoint that is damaged."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        distill_small(*made, run, StopsAt(5))
    (run / "checkpoints" / "step-000005" / "model.safetensors").write_bytes(b"")
    student = distill_small(*made, run, allow_changed=True, learning_rate=1e-3)
    assert card(student) == "| changed on the way | `learning_rate` from 0.003 to 0.001 at iteration 4 |"
