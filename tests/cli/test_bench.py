"""`evdit bench attention` as a person runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.attention.kernels import sdpa
from vdit_cli.errors import DONE, ENVIRONMENT, GATE_FAILED, USAGE

Evdit = Callable[..., tuple[int, str, str]]
TINY = (
    *("bench", "attention", "--latent-frames", "4", "--frame-tokens", "3", "--heads", "1", "--head-dim", "8"),
    *("--masks", "1:3", "--kernels", "sdpa", "--device", "cpu", "--seconds", "0"),
)


@pytest.mark.numerical
def test_shapes_on_the_cpu(evdit: Evdit):
    """Every mask of the preset, with JSON on stdout; done already, it prints the same."""
    command = ["bench", "attention", "--preset", "shapes", "--device", "cpu", "--seconds", "0", "--json", "-o", "run"]
    code, first, err = evdit(*command)
    assert code == DONE, err
    told = json.loads(first)
    assert told["schema"] == "evdit.bench-attention/1" and told["machine"]["kind"] and told["versions"]["torch"]
    rows = told["tables"]["shapes"]["rows"]
    assert {row["mask"] for row in rows} == {"8:0", "4:4", "3:5", "2:6", "1:7"}
    assert all(row["ms"] or row["note"] for row in rows)
    assert_close([row["kept_share"] + row["skipped_share"] for row in rows], [1] * len(rows))
    code, again, err = evdit(*command)
    assert (code, again) == (DONE, first) and "done already" in err


def test_the_default_folder_and_preset_are_told(evdit: Evdit):
    """Without -o the rows are under runs/; without a preset the rest of the shape is that of shapes."""
    code, out, err = evdit(*TINY)
    assert code == DONE and "those of shapes" in err
    (made,) = Path("runs").iterdir()
    assert made.name.endswith("-bench-attention-4x3-1x8")
    assert "speed-up" in out and "break-even" in out and "4x3-1x8: 12 tokens" in out
    assert "| mask |" in (made / "results.md").read_text(encoding="utf-8")


def test_a_recipe_sets_the_same_keys(evdit: Evdit, tmp_path: Path):
    """A file, --set and flags, later ones winning; the saved command asks for the same."""
    (tmp_path / "r.yaml").write_text("bench:\n  attention:\n    masks: 1:3\n    heads: 3\n", encoding="utf-8")
    flags = [flag for flag in TINY if flag not in ("--masks", "1:3", "--heads", "1")]
    code, out, _ = evdit(
        *flags, "--config", str(tmp_path / "r.yaml"), "--set", "bench.attention.seed=5", "--json", "-o", "run"
    )
    command = json.loads(out)["command"]
    assert code == DONE and "--set bench.attention.masks=1:3" in command and "--set bench.attention.seed=5" in command
    assert "4x3-3x8" in json.loads(out)["tables"]


def test_a_wrong_kernel_is_printed_without_a_number_and_exits_5(evdit: Evdit, monkeypatch: pytest.MonkeyPatch):
    """The table is there, and the error says what was off."""
    monkeypatch.setattr(sdpa, "run", lambda q, k, v, passes: (q + k + v) / 3)
    code, out, err = evdit(*TINY, "-o", "run")
    assert code == GATE_FAILED and "not timed: " in out and "sdpa dense" in out
    assert "error: 1 of the rows did not pass" in err


@pytest.mark.parametrize(
    ("flags", "line", "step"),
    [
        (("--preset", "wan-480"), "error: unknown preset 'wan-480'", "wan-480p"),
        (("--masks", "2:7"), "error: mask 2:7 is for 9 frames", "2:6"),
        (("--masks", "5:3"), "error: mask 5:3 does not exist", "4:4"),
        (("--kernels", "sdap"), "error: unknown kernel 'sdap'", "sdpa"),
        (("--dtype", "int8"), "error: bench.attention.dtype is 'int8'", None),
        (("--heads", "0"), "error: bench.attention.heads is 0: it must be", None),
        (("--latent-frames", "1"), "error: bench.attention.latent_frames is 1", None),
        (("--table", "7"), "error: table 7 is not there", "--table 1"),
        (("--masks", "1:7", "--all"), "error: --all measures presets as they are", "--all"),
        (("--device", "gpu"), "error: unknown device 'gpu'", "cpu"),
    ],
)
def test_what_can_not_be_is_refused(evdit: Evdit, flags: tuple[str, ...], line: str, step: str | None):
    """Exit 2: the thing, the flag, the next step; nothing on stdout and nothing on disk."""
    code, out, err = evdit("bench", "attention", "--device", "cpu", *flags)
    assert (code, out) == (USAGE, "") and line in err and f"from:  {flags[0]}" in err
    assert step is None or step in err.split("try:")[1]
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(evdit: Evdit):
    """Exit 3."""
    code, out, err = evdit("bench", "attention", "--device", "cuda")
    assert (code, out) == (ENVIRONMENT, "") and "cuda was asked for" in err and "--device cpu" in err


@pytest.mark.parametrize("args", [(), ("attention",)])
def test_each_help_page_ends_with_its_example(evdit: Evdit, args: tuple[str, ...]):
    """A line to copy, of this very command."""
    code, out, _ = evdit("bench", *args, "--help")
    assert code == DONE and out.split("Example:\n")[1].startswith("  evdit bench attention ")
