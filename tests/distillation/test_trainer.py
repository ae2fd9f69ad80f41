"""The loop learns, saves whole checkpoints, and goes on exactly where a killed process left off."""

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.distillation.small_training import ITERATIONS, train_small
from tests.forked import run_forked
from vdit_cli.distillation.checkpoints import list_checkpoints, newest_checkpoint
from vdit_cli.distillation.metrics import Metrics
from vdit_cli.errors import FAILED, EvditError, Interrupted
from vdit_cli.recipe_training import RankedTrainingOptions
from vdit_cli.timing import Silent


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _without_speed(lines: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "iterations_per_second"} for line in lines]


def test_loss_falls_and_the_last_checkpoints_stay(tmp_path):
    _, trained = train_small(tmp_path)
    lines = _lines(tmp_path)
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["iteration"] == trained.iterations == ITERATIONS
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-000020", "step-000023"]


@pytest.mark.parametrize("kill_at", [3, 12])
def test_a_killed_process_resumes_bit_equal(tmp_path, kill_at):
    whole, whole_trained = train_small(tmp_path / "whole")
    killed = run_forked(1, train_small, tmp_path / "killed", kill_at)
    assert killed.codes == [-signal.SIGKILL], killed.err
    resumed, resumed_trained = train_small(tmp_path / "killed")
    for name, parameter in whole.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name
        assert torch.equal(whole_trained.average[name], resumed_trained.average[name]), name
    ends = {line["iteration"]: line["loss"] for line in _lines(tmp_path / "killed")}
    assert max(ends) == ITERATIONS and len(ends) == len(_lines(tmp_path / "killed")), "no window is counted twice"


def test_a_finished_training_is_not_done_again(tmp_path):
    train_small(tmp_path)
    before = _lines(tmp_path)
    _, trained = train_small(tmp_path)
    assert trained.iterations == ITERATIONS and _without_speed(_lines(tmp_path)) == _without_speed(before)


def test_first_interrupt_saves_and_the_rest_is_bit_equal(tmp_path):
    class StopsAtSeven(Silent):
        seen = 0

        def should_stop(self) -> bool:
            self.seen += 1
            return self.seen == 7

    with pytest.raises(Interrupted, match="7 of 23"):
        train_small(tmp_path / "cut", progress=StopsAtSeven())
    assert list_checkpoints(tmp_path / "cut" / "checkpoints")[-1].name == "step-000007"
    resumed, _ = train_small(tmp_path / "cut")
    whole, _ = train_small(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_and_is_never_saved(tmp_path):
    with pytest.raises(EvditError, match="loss is nan") as caught:
        train_small(tmp_path, nan_at=11)
    assert caught.value.exit_code == FAILED
    state, damaged = newest_checkpoint(tmp_path / "checkpoints", "cpu")
    assert state.iteration == 10 and not damaged
    assert "the checkpoint of iteration 10 is kept" in caught.value.what
    back = f"an earlier start, without {tmp_path / 'checkpoints' / 'step-000010'}, where that fails too"
    assert caught.value.next_steps[1] == back
    assert all(torch.isfinite(tensor).all() for tensor in state.model.values())


@pytest.mark.parametrize(("saved", "told"), [(False, "nothing was saved yet"), (True, "checkpoint of iteration 20 is")])
def test_a_figure_that_is_not_finite_is_not_written(tmp_path, saved: bool, told: str):
    """What is kept of the training is told; a damaged checkpoint is not."""
    if saved:
        train_small(tmp_path)
        (tmp_path / "checkpoints" / "step-000023" / "state.json").write_text("[]", encoding="utf-8")
        (tmp_path / "metrics.jsonl").unlink()
    metrics = Metrics(tmp_path, 0)
    metrics.keep(6, 1.0, {"loss": torch.tensor(float("nan"))})
    with pytest.raises(EvditError, match=f"small: loss is nan at iteration 6; .*{told}") as caught:
        metrics.write("small")
    assert caught.value.exit_code == FAILED and not metrics.path.exists()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_lost_in_rounding_are_told_once(tmp_path, precision: str):
    """Above a thousand times the clip, with what may help; just below it nothing is said."""
    told = {}
    for clip in (1.0, 1e4):
        progress = Silent()
        options = {"kind": RankedTrainingOptions, "precision": precision, "clip": clip}
        train_small(tmp_path / str(clip), progress=progress, scale=1e5, **options)
        told[clip] = [line for line in progress.lines if line.startswith("warning: ")]
    norm = _lines(tmp_path / "1.0")[0]["gradient_norm"]
    assert 1e3 < norm < 1e7 and told[1e4] == []
    (line,) = told[1.0]
    cures = "precision=float32 or a smaller learning rate" if precision == "bfloat16" else "a smaller learning rate"
    assert f"norm of the gradients is {norm:.2g} at iteration 4, of which clip keeps 1:" in line
    assert line.endswith(f"try {cures}")
    with pytest.raises(EvditError, match="loss is nan") as caught:
        train_small(tmp_path / "nan", nan_at=2, kind=RankedTrainingOptions, precision=precision)
    assert list(caught.value.next_steps) == [*cures.split(" or "), "another seed, in a new folder"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimiser-1.safetensors", "state.json"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, file):
    whole, _ = train_small(tmp_path)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    content = (newest / file).read_bytes()
    (newest / file).write_bytes(content[: len(content) // 2])
    progress = Silent()
    resumed, _ = train_small(tmp_path, progress=progress)
    assert "step-000023 is damaged" in progress.lines[0]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
