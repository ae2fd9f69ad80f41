"""Two ranks against one process: the same losses, gradients and weights; exact resumption; another number of ranks.

The trainings on two gloo ranks run once, in two launches and forked, and the tests look at what they left.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from tests.distillation.ranks_training import BATCH, run_scenarios, train_net
from tests.forked import run_forked
from tests.tiny_pipeline import copied
from vdit_cli.distillation.checkpoints import list_checkpoints
from vdit_cli.errors import INTERRUPTED, EvditError, Interrupted
from vdit_cli.parallel.groups import joined
from vdit_cli.parallel.launch import launch
from vdit_cli.timing import Silent

ROOT = Path(__file__).parents[2]
CLOSE = 1e-5


def run_on_two(folder: Path, *scenarios: str) -> None:
    """Those scenarios of `ranks_training` on two ranks of this machine."""
    launch(2, ["-m", "tests.distillation.ranks_training", str(folder), *scenarios])


def lines(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def average(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights that a run on two ranks ended with."""
    return torch.load(folder / "average.pt", weights_only=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process: one, parts, back to iteration 4. Two ranks: whole, shares, back to 8, and two that are cut short."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch, joined("cpu") as ranks:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        _, trained = train_net(folder / "one")
        torch.save(trained.average, folder / "one" / "average.pt")
        train_net(folder / "parts", accumulation=3)
        train_net(folder / "back", ranks, "full", iterations=4)
        with pytest.raises(Interrupted, match="net stopped after 6 of 12 iterations, all saved"):
            run_on_two(folder, "whole:none:1:12", "shares:full:2:12", "back:full:1:8", "cut:none:1:12:stop5")
        with pytest.raises(EvditError, match="rank 1 was killed by SIGKILL") as killed:
            run_on_two(folder, "killed:full:2:12:kill9")
        assert killed.value.exit_code == 137
        assert (lines(folder / "cut")[-1]["iteration"], INTERRUPTED) == (6, 130)
        for name, newest in (("cut", "step-000006"), ("killed", "step-000008")):
            assert list_checkpoints(folder / name / "checkpoints")[-1].name == newest
        again = run_forked(2, run_scenarios, folder, ["cut:none:1:12", "killed:full:2:12"])
        assert again.codes == [0, 0], again.err
    return folder


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["parts", "whole", "shares"])
def test_losses_and_gradients_equal_one_process(runs: Path, name: str):
    """Each of 12 iterations of 7 samples: in 3 parts, on 2 ranks, and on 2 ranks in shards and 2 parts each."""
    found, expected = lines(runs / name), lines(runs / "one")
    assert len(found) == len(expected) == 12
    for line, truth in zip(found, expected, strict=True):
        for key in ("loss", "time", "gradient_norm", "rate_share"):
            assert_close(line[key], truth[key], rtol=CLOSE, atol=CLOSE, told=(key, line["iteration"]))
    assert expected[-1]["gradient_norm"] > 0.5, "gradients are clipped, so that their sum is seen in the weights"


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["whole", "shares"])
def test_averaged_weights_equal_one_process(runs: Path, name: str):
    """A layer of one row on two ranks included."""
    for key, value in average(runs / "one").items():
        assert_close(average(runs / name)[key], value, rtol=CLOSE, atol=CLOSE, told=key)


@pytest.mark.parametrize(("name", "uninterrupted"), [("cut", "whole"), ("killed", "shares")])
def test_two_ranks_resume_bit_equal(runs: Path, name: str, uninterrupted: str):
    """After Ctrl-C on the launcher, and after kill -9 of one rank."""
    expected = average(runs / uninterrupted)
    assert all(torch.equal(value, expected[key]) for key, value in average(runs / name).items())
    assert [line["loss"] for line in lines(runs / name)] == [line["loss"] for line in lines(runs / uninterrupted)]


@pytest.mark.numerical
def test_one_rank_then_two_then_one(runs: Path, tmp_path: Path):
    """Iterations 1-4 in one process, 5-8 in shards on two ranks, 9-12 whole in one process again."""
    back = copied(runs / "back", tmp_path / "back")
    _, trained = train_net(back)
    for key, value in average(runs / "one").items():
        assert_close(trained.average[key], value, rtol=CLOSE, atol=CLOSE, told=key)
    found = [line["loss"] for line in lines(back)]
    assert_close(found, [line["loss"] for line in lines(runs / "one")], rtol=CLOSE)


@pytest.mark.numerical
@pytest.mark.parametrize("loss", ["a byte short", "a share lost"])
def test_a_damaged_share_falls_back(runs: Path, tmp_path: Path, loss: str):
    """The newest checkpoint of two shares is no longer whole: the one before it is taken, and that is said."""
    shares = copied(runs / "shares", tmp_path / "shares")
    newest = list_checkpoints(shares / "checkpoints")[-1]
    share = sorted(newest.glob("*.safetensors"))[1]
    content = share.read_bytes()
    share.unlink()
    if loss == "a byte short":
        share.write_bytes(content[:-1])
    progress = Silent()
    _, trained = train_net(shares, progress=progress)
    assert f"checkpoint {newest.name} is damaged" in progress.lines[0]
    for key, value in average(runs / "one").items():
        assert_close(trained.average[key], value, rtol=CLOSE, atol=CLOSE, told=key)


def test_recomputed_blocks_change_nothing(runs: Path, tmp_path: Path):
    """Gradient checkpointing is bit-equal on the CPU."""
    _, trained = train_net(tmp_path, recompute=True)
    assert all(torch.equal(value, average(runs / "one")[key]) for key, value in trained.average.items())


def test_a_batch_too_small_to_split_is_refused(tmp_path: Path):
    """Every part needs a sample."""
    with pytest.raises(ValueError, match=f"{BATCH} samples can't be 8 parts"):
        train_net(tmp_path, accumulation=8)
