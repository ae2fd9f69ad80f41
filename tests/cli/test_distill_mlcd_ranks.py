"""`evdit distill-mlcd` on several gloo ranks as installed: losses, weights, shards, kill -9, NaN, other ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.closeness import assert_close
from tests.distillation.prepared import write_data
from tests.tiny_pipeline import copied, write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir

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
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
DISTURBED = """
import os, signal, sys
from vdit_cli.cli.app import main
from vdit_cli.distillation import distill_mlcd
event, rank = os.environ["EVENT"], os.environ["RANK"]
of, trained = distill_mlcd.Lesson.of, distill_mlcd.trained_parameters
now = [0]
def disturbed(self, samples):
    now[0] = samples.iteration
    if event == "kill" and samples.iteration == 3 and rank == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return of(self, samples)
def hooked(student):
    parameters = trained(student)
    broken = lambda gradient: gradient * float("nan") if event == "nan" and rank == "1" and now[0] == 3 else None
    list(parameters.values())[2].register_hook(broken)
    return parameters
distill_mlcd.Lesson.of = disturbed
distill_mlcd.trained_parameters = hooked
sys.exit(main(sys.argv[1:]))
"""


def words(folder: Path, run: str, **changes: object) -> list[str]:
    """The command's words for a tiny training in `folder/run`."""
    sets = [word for each in ({**OPTIONS, **changes}).items() for word in ("--set", "distill_mlcd.{}={}".format(*each))]
    given = ["--model", str(folder / "model"), "--data", str(folder / "data"), "-o", str(folder / run)]
    return ["distill-mlcd", *given, "--steps", "4", "--device", "cpu", *sets]


def ran(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program's end, one thread a process."""
    given = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=given, capture_output=True, encoding="utf-8", timeout=600)


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
    for name, more in {
        "one": [],
        "two": ["--gpus", "2", "--json"],
        "three": ["--gpus", "3"],
        "shards": ["--gpus", "2", "--set", "distill_mlcd.shard=full"],
    }.items():
        done = ran(EXECUTABLE, *words(folder, name), *more)
        assert done.returncode == 0, done.stderr
        student = str(folder / name / "student")
        assert done.stdout == f"{student}\n" if name != "two" else json.loads(done.stdout)["student"] == student
        assert done.stderr.count("iteration 0: sharpness") == 1, "said once, by one rank"
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
    again = ran(EXECUTABLE, *words(folder, "one", shard="full"), "--gpus", "2")
    assert again.returncode == 0 and again.stderr.count("is done already") == 1, again.stderr
    assert again.stdout == f"{folder / 'one' / 'student'}\n"


@pytest.mark.numerical
@pytest.mark.skipif(os.name != "posix", reason="a rank is killed by signal 9")
@pytest.mark.parametrize("shard", ["none", "full"])
def test_a_killed_rank_resumes_exactly_and_on_another_number_of_ranks(folder: Path, tmp_path: Path, shard: str):
    """torchrun as a person types it, rank 1 killed at iteration 3: resumed on two ranks bit-equal, on one to 1e-5."""
    program = tmp_path / "disturbed.py"
    program.write_text(DISTURBED, encoding="utf-8")
    name, whole = f"cut-{shard}", folder / ("two" if shard == "none" else "shards")
    killed = ran(*TORCHRUN, str(program), *words(folder, name, shard=shard), EVENT="kill")
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr, killed.stderr
    run = RunDir.open(folder / name)
    assert run.state() in ("interrupted", "failed"), "the first rank may hear of the other's end before it is ended"
    assert [path.name for path in (run.path / "checkpoints").glob("step-*")] == ["step-000002"]
    copy = copied(run.path, folder / f"alone-{shard}")
    two = ran(*TORCHRUN, "--module", "vdit_cli", *words(folder, name, shard=shard))
    assert two.returncode == 0, two.stderr
    assert torch.equal(losses(run.path), losses(whole))
    assert all(torch.equal(value, weights(whole)[key]) for key, value in weights(run.path).items())
    one = ran(EXECUTABLE, *words(folder, copy.name))
    assert one.returncode == 0, one.stderr
    assert_close(losses(copy), losses(whole), rtol=CLOSE, atol=CLOSE)


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(folder: Path, tmp_path: Path):
    """Exit 1, told by name; no file holds a NaN, and the same command ends equal to an undisturbed run."""
    program = tmp_path / "disturbed.py"
    program.write_text(DISTURBED, encoding="utf-8")
    broken = ran(*TORCHRUN, str(program), *words(folder, "nan"), EVENT="nan")
    assert broken.returncode == 1 and "is not finite at iteration 4; the checkpoint of" in broken.stderr, broken.stderr
    run = folder / "nan"
    assert not (run / "student").exists()
    for file in run.rglob("*.safetensors"):
        assert all(each.isfinite().all() for each in load_file(file).values()), file
    assert not any("NaN" in file.read_text(encoding="utf-8") for file in (*run.rglob("*.json"), *run.glob("*.jsonl")))
    again = ran(EXECUTABLE, *words(folder, "nan"), "--gpus", "2")
    assert again.returncode == 0, again.stderr
    assert torch.equal(losses(run), losses(folder / "two"))
    assert all(torch.equal(value, weights(folder / "two")[key]) for key, value in weights(run).items())


def test_more_ranks_than_clips_are_refused_before_a_run_is_made(folder: Path):
    """Exit 2, told once."""
    refused = ran(EXECUTABLE, *words(folder, "few", batch_size=1), "--gpus", "2")
    assert refused.returncode == 2 and refused.stderr.count("error:") == 1, refused.stderr
    assert "batch_size is 1: 2 ranks of 1 part each need at least 2 clips" in refused.stderr
    assert "from:  --set distill_mlcd.batch_size=1" in refused.stderr and "or  --gpus 1" in refused.stderr
    assert not (folder / "few").exists()
