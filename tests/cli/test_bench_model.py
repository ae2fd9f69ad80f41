"""`evdit bench model` as a person runs it."""

import json

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
