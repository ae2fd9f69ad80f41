"""`evdit distill-mlcd` on several gloo ranks: losses, weights, shards, kill -9, NaN, other ranks.

As installed, by `--gpus` and torchrun, where the start or the end of ranks is looked at; forked where their work is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.closeness import assert_close
from tests.distillation.disturbed_ranks import disturbed
from tests.distillation.prepared import write_data
from tests.forked import Ended, run_forked
from tests.tiny_pipeline import copied, write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.cli.app import main

ROOT = Path(__file__).parents[2]
CLOSE = 1e-5
WEIGHTS = "diffusion_pytorch_model.safetensors"
OPTIONS = {
    "iterations": 5,
    "batch_size": 7,
    "teacher_points": "[2,5]",
    "warmup": 1,
    "checkpoint_every": 2,
    "log_every": 1,
    "learning_rate": 1e-3,
    "previews": 1,
    "held_out": 1,
}
EXECUTABLE = str(Path(sys.executable).with_name("evdit"))
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--module")


def words(folder: Path, run: str, **changes: object) -> list[str]:
    """The command's words for a tiny training in `folder/run`."""
    sets = [word for each in ({**OPTIONS, **changes}).items() for word in ("--set", "distill_mlcd.{}={}".format(*each))]
    given = ["--model", str(folder / "model"), "--data", str(folder / "data"), "-o", str(folder / run)]
    return ["distill-mlcd", *given, "--steps", "4", "--device", "cpu", *sets]


def ran(*command: str) -> Ended:
    """A program's end, one thread a process."""
    given = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, encoding="utf-8", timeout=600)
    return Ended([done.returncode], done.stdout, done.stderr)


def forked(count: int, folder: Path, run: str, **changes: object) -> Ended:
    """The end of a tiny training in `folder/run` on ranks without torchrun."""
    return run_forked(count, main, words(folder, run, **changes))


def lines(run: Path) -> list[dict[str, float]]:
    """The metrics of every iteration."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["iteration"] for line in found] == list(range(1, len(found) + 1)), "one rank alone writes"
    return found


def losses(run: Path) -> torch.Tensor:
    """What is learnt from and held out, in each segment too, and how steep it was, a row an iteration."""
    segments = [f"loss_segment_{m}" for m in range(4)]
    names = ["loss", "held_out_loss", "gradient_norm", *segments, "held_out_loss_segment_0"]
    return torch.tensor([[line[name] for name in names] for line in lines(run)], dtype=torch.float64)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """The student's."""
    return load_file(run / "student" / WEIGHTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its data, and runs of five iterations: of one process, two and three ranks, and two in shards."""
    folder = tmp_path_factory.mktemp("ranks")
    write_data(folder / "data", write_pipeline(folder / "model"), 8)
    for name, done in {
        "one": forked(1, folder, "one"),
        "two": ran(EXECUTABLE, *words(folder, "two"), "--gpus", "2", "--json"),
        "three": forked(3, folder, "three"),
        "shards": forked(2, folder, "shards", shard="full"),
    }.items():
        assert not any(done.codes), done.err
        student = str(folder / name / "student")
        assert done.out == f"{student}\n" if name != "two" else json.loads(done.out)["student"] == student
        assert done.err.count("iteration 0: sharpness") == 1, "said once, by one rank"
    return folder


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["two", "three", "shards"])
def test_ranks_learn_what_one_process_learns(folder: Path, name: str):
    """A batch of 7 on 2 and 3 ranks: every loss to 1e-5; run.json, previews and student by the first rank.

    Weights move by a rate of 1e-3 a step; AdamW makes the last digit of a tiny gradient a hundredth of that.
    """
    assert len(losses(folder / "one")) == 5
    assert_close(losses(folder / name), losses(folder / "one"), rtol=CLOSE, atol=CLOSE)
    expected, start = weights(folder / "one"), load_file(folder / "model" / "transformer" / WEIGHTS)
    assert_close(weights(folder / name), expected, rtol=0, atol=1e-4, planted=start)
    looks = (folder / name / "previews" / "looks.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(look)["iteration"] for look in looks] == [0, 2, 4, 5]
    assert RunDir.open(folder / name).is_done() and Receipt.read(folder / name / "receipt.json").ran.guidance == 1.0


def test_a_finished_run_is_told_once_by_any_number_of_ranks(folder: Path):
    """The number of ranks and how the weights are held decide nothing of the run."""
    again = forked(2, folder, "one", shard="full")
    assert not any(again.codes) and again.err.count("is done already") == 1, again.err
    assert again.out == f"{folder / 'one' / 'student'}\n"


@pytest.mark.numerical
@pytest.mark.skipif(os.name != "posix", reason="a rank is killed by signal 9")
@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_killed_rank_resumes_exactly_and_on_another_number_of_ranks(folder: Path, shard: str):
    """Rank 1 killed at iteration 3, of torchrun's too: resumed on two ranks bit-equal, on one to 1e-5."""
    name, whole = f"cut-{shard}", folder / ("two" if shard == "none" else "shards")
    cut = words(folder, name, shard=shard)
    if shard == "none":
        assert run_forked(2, disturbed, "kill", cut).codes[1] == -signal.SIGKILL
    else:
        killed = ran(*TORCHRUN, "tests.distillation.disturbed_ranks", "kill", *cut)
        assert killed.codes != [0] and "SIGKILL" in killed.err, killed.err
    run = RunDir.open(folder / name)
    assert run.state() in ("interrupted", "failed"), "the first rank may hear of the other's end before it is ended"
    assert [path.name for path in (run.path / "checkpoints").glob("step-*")] == ["step-000002"]
    copy = copied(run.path, folder / f"alone-{shard}")
    two = forked(2, folder, name, shard=shard)
    assert two.codes == [0, 0], two.err
    assert torch.equal(losses(run.path), losses(whole))
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(run.path).items())
    one = forked(1, folder, copy.name)
    assert one.codes == [0], one.err
    assert_close(losses(copy), losses(whole), rtol=CLOSE, atol=CLOSE)


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(folder: Path):
    """Exit 1, told by name; no file holds a NaN, and the same command ends equal to an undisturbed run."""
    broken = run_forked(2, disturbed, "nan", words(folder, "nan"))
    assert broken.codes == [1, 1] and "is not finite at iteration 4; the checkpoint of" in broken.err, broken.err
    run = folder / "nan"
    assert not (run / "student").exists()
    for file in run.rglob("*.safetensors"):
        assert all(each.isfinite().all() for each in load_file(file).values()), file
    assert not any("NaN" in file.read_text(encoding="utf-8") for file in (*run.rglob("*.json"), *run.glob("*.jsonl")))
    again = forked(2, folder, "nan")
    assert again.codes == [0, 0], again.err
    assert torch.equal(losses(run), losses(folder / "two"))
    assert all(torch.equal(value, weights(folder / "two")[key]) for key, value in weights(run).items())


def test_more_ranks_than_clips_are_refused_before_a_run_is_made(folder: Path):
    """Exit 2, told once."""
    refused = ran(EXECUTABLE, *words(folder, "few", batch_size=1), "--gpus", "2")
    assert refused.codes == [2] and refused.err.count("error:") == 1, refused.err
    assert "batch_size is 1: 2 ranks of 1 part each need at least 2 clips" in refused.err
    assert "from:  --set distill_mlcd.batch_size=1" in refused.err and "or  --gpus 1" in refused.err
    assert not (folder / "few").exists()
