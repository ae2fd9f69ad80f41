"""`evdit bench model` as a person runs it."""

import json
import subprocess
import sys

TINY = "--layers 1 --heads 1 --head-dim 6 --frame-tokens 4 --latent-frames 4 --device cpu --seconds 0 --plans 1:3"


def evdit(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "vdit_cli", "bench", "model", *args]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False)


def test_a_tiny_step_is_measured_and_a_finished_run_prints_the_same_json(tmp_path):
    args = [*TINY.split(), "--json", "-o", str(tmp_path / "run")]
    first, again = evdit(*args), evdit(*args)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    results = json.loads(first.stdout)
    assert results == json.loads(again.stdout)
    assert results["schema"] == "evdit.bench-model/1"
    assert {row["plan"] for row in results["tables"]["steps"]["rows"]} == {"dense", "1:3"}
    assert "done already" in again.stderr


def test_a_size_that_does_not_fit_is_told_with_its_flag():
    done = evdit("--head-dim", "64", "--device", "cpu")
    assert done.returncode == 2
    assert "from:  --head-dim 64" in done.stderr
    assert "try:   --head-dim 60" in done.stderr
