"""`evdit distill-kd` as a person runs it: the recipe at a tiny size, again, on ranks, and the student in generate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.closeness import assert_close
from tests.distillation.prepared import write_data
from tests.forked import run_forked
from tests.tiny_pipeline import write_pipeline
from vdit_cli.cli.app import main

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "distill-kd.yaml"
TINY = ("iterations=3", "batch_size=2", "previews=0", "warmup=1", "log_every=1")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_the_recipe_makes_a_student_that_generates_under_its_plan(tmp_path: Path, evdit):
    model = write_pipeline(tmp_path / "model")
    data = write_data(tmp_path / "data", model, 16)
    command = ["distill-kd", "--model", str(model), "--data", str(data), "--masks", "1:2", "--config", str(RECIPE)]
    command += ["-o", "run", "--device", "cpu", *(word for key in TINY for word in ("--set", f"distill_kd.{key}"))]
    code, out, err = evdit(*command)
    assert code == 0, err
    assert out.strip() == str(Path("run") / "student")
    assert "memory: needs about " in err and "layer  mask    before     after      after/before" in err
    whole = {path.name for path in Path("run").iterdir()}
    assert whole == {"run.json", "receipt.json", "README.md", ".lock", "metrics.jsonl", "checkpoints", "student"} | {
        "layers.json"
    }
    code, out, err = evdit(*command, "--json")
    assert code == 0 and "run is done already" in err
    assert json.loads(out) == {"schema": "evdit.distill-kd/1", "student": str(Path("run") / "student")}
    code, _, err = evdit(*command, "--seed", "1")
    assert code == 2 and "seed: was 0, is 1" in err and "--allow-changed" not in err
    flags = ["--model", str(model), "--checkpoint", "run", "--device", "cpu", "-o", "v.mp4"]
    code, _, err = evdit("generate", "a small red circle", *flags)
    assert code == 0 and "masks 1:2 by run/student/plan.json" in err, err


@pytest.mark.parametrize("given", [[], ["--masks", "none"]])
def test_masks_are_asked_for(tmp_path: Path, evdit, given: list[str]):
    """A plan that is not given, and full attention, have nothing to distil: what makes a plan is named."""
    model = write_pipeline(tmp_path / "model")
    data = write_data(tmp_path / "data", model)
    code, out, err = evdit("distill-kd", "--model", str(model), "--data", str(data), "--device", "cpu", *given)
    assert (code, out) == (2, "") and "under full attention there is nothing to distil" in err
    assert f"  from:  --masks {given[-1] if given else 'auto'}\n" in err and "evdit search-masks --model" in err
    assert not Path("runs").exists()


def test_data_are_asked_for(evdit):
    code, _, err = evdit("distill-kd", "--masks", "2:6")
    assert code == 2 and "--data" in err and "evdit prepare-data" in err


@pytest.mark.numerical
@pytest.mark.parametrize("rank", [0, 2])
def test_ranks_learn_what_one_process_learns(tmp_path: Path, rank: int):
    """A batch of 5 on 1 and on 2 ranks: losses, the report of the layers and the student."""
    model = write_pipeline(tmp_path / "model")
    data = write_data(tmp_path / "data", model, 16)
    sets = {"iterations": 3, "batch_size": 5, "log_every": 1, "previews": 1, "warmup": 1, "learning_rate": 1e-3}
    words = ["distill-kd", "--model", str(model), "--data", str(data), "--masks", "1:2", "--lora-rank", str(rank)]
    words += [
        "--device",
        "cpu",
        *(word for each in sets.items() for word in ("--set", "distill_kd.{}={}".format(*each))),
    ]
    for name, count in (("one", 1), ("two", 2)):
        done = run_forked(count, main, [*words, "-o", str(tmp_path / name)])
        assert not any(done.codes), done.err
        assert done.err.count("attention loss of held-out clips") == 1, "said once, by one rank"
    found, alone = ([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").open()] for run in ("two", "one"))
    names = ("loss", "attention_loss", "held_out_loss", "gradient_norm")
    losses = [torch.tensor([[line[name] for name in names] for line in lines]).double() for lines in (found, alone)]
    assert_close(*losses, rtol=1e-4, atol=1e-6)
    layers = [json.loads((tmp_path / run / "layers.json").read_text("utf-8"))["layers"] for run in ("two", "one")]
    shares = [torch.tensor([[each["before"], each["after"]] for each in run]).double() for run in layers]
    assert_close(*shares, rtol=1e-4, atol=1e-6)
    # Some other weights have tiny gradients, of whose last digits AdamW makes whole steps.
    two, one, start = (
        {name: x for name, x in load_file(folder / WEIGHTS).items() if name.endswith(("to_v.weight", "net.2.weight"))}
        for folder in (tmp_path / "two" / "student", tmp_path / "one" / "student", model / "transformer")
    )
    assert_close(two, one, rtol=0, atol=2e-5 if rank else 1e-4, planted=start)
