"""`evdit bench model` as a person runs it."""

import json

import pytest
import torch

from vdit_cli.bench import measuring, steps

TINY = "--layers 1 --heads 1 --head-dim 6 --frame-tokens 4 --latent-frames 4 --device cpu --seconds 0 --plans 1:3"


def test_a_tiny_step_is_measured_and_a_finished_run_prints_the_same_json(evdit):
    args = ["bench", "model", *TINY.split(), "--json", "-o", "run"]
    code, out, err = evdit(*args)
    assert code == 0, err
    results = json.loads(out)
    code, out, err = evdit(*args)
    assert (code, json.loads(out)) == (0, results)
    assert results["schema"] == "evdit.bench-model/1"
    assert {row["plan"] for row in results["tables"]["steps"]["rows"]} == {"dense", "1:3"}
    assert "done already" in err


def test_a_size_that_does_not_fit_is_told_with_its_flag(evdit):
    code, _, err = evdit("bench", "model", "--head-dim", "64", "--device", "cpu")
    assert code == 2
    assert "from:  --head-dim 64" in err
    assert "try:   --head-dim 60" in err


def starved(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("flags", [[], ["--videos"]], ids=str)
def test_no_memory_for_any_row_is_exit_code_4(evdit, monkeypatch, flags):
    """The table is printed, and the same command tries again."""
    measured = steps._measured
    monkeypatch.setattr(steps, "_measured", starved)
    args = ["bench", "model", *TINY.split(), "--json", "-o", "run", *flags]
    code, out, err = evdit(*args)
    assert code == 4 and {row["ms"] for row in json.loads(out)["tables"]["steps"]["rows"]} == {None}
    assert "error: nothing was measured: 6 of 6 rows ran out of memory" in err and "from:  run/results.json" in err
    monkeypatch.setattr(steps, "_measured", measured)
    code, out, err = evdit(*args)
    assert code == 0 and None not in {row["ms"] for row in json.loads(out)["tables"]["steps"]["rows"]}, err


def test_memory_for_one_row_is_a_success(evdit, monkeypatch):
    """The others say why they have no time."""
    measured = steps._measured
    few = lambda *given: starved() if given[1].guided else measured(*given)  # noqa: E731
    monkeypatch.setattr(steps, "_measured", few)
    code, out, _ = evdit("bench", "model", *TINY.split(), "--json", "-o", "run")
    assert code == 0 and None in {row["ms"] for row in json.loads(out)["tables"]["steps"]["rows"]}


def test_no_memory_for_any_attention_is_exit_code_4(evdit, monkeypatch):
    """As for the model."""
    monkeypatch.setattr(measuring, "judge_small", starved)
    flags = "--latent-frames 4 --frame-tokens 4 --heads 1 --head-dim 8 --masks 1:3 --seconds 0 --device cpu"
    code, out, err = evdit("bench", "attention", *flags.split(), "--json", "-o", "run")
    assert code == 4 and json.loads(out)["schema"] == "evdit.bench-attention/1"
    assert "error: nothing was measured: " in err and "ran out of memory" in err
