"""The logs of a training: a line cut short by a killed process is left out, anything else wrong is told by its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vdit_cli.distillation.metrics import Line, Metrics, drop_after, last_loss, loss_told, losses_in
from vdit_cli.errors import USAGE, EvditError

WHOLE = '{"iteration": 1, "loss": 0.5}\n{"iteration": 2, "loss": 0.25}\n'


def test_a_line_cut_short_is_left_out_and_never_joined_to_the_next(tmp_path: Path):
    """Its iteration is done again; what was whole stays as it was written."""
    log = tmp_path / "metrics.jsonl"
    log.write_text(WHOLE + '{"iteration": 3, "lo', encoding="utf-8")
    assert losses_in(log) == (0.5, 0.25)
    metrics = Metrics(tmp_path, 2)
    metrics.keep(3, 1.0, {"loss": torch.tensor(0.125)})
    metrics.write("it")
    assert losses_in(log) == (0.5, 0.25, 0.125) and log.read_text(encoding="utf-8").startswith(WHOLE)
    assert drop_after(log, Line, 1) == "" and losses_in(log) == (0.5,)
    assert drop_after(tmp_path / "none.jsonl", Line, 1) == "" and not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("make", "place", "words"),
    [
        (lambda log: log.mkdir(), "", "can't be read: Is a directory"),
        (lambda log: log.write_bytes(b"\xff\xfe" * 9), "", "it is not UTF-8 text"),
        (lambda log: log.write_text("{}\n" + WHOLE), ":1", "is missing: a line needs it"),
        (lambda log: log.write_text(WHOLE + "x\n"), ":3", "not a line: it is not JSON"),
        (lambda log: log.write_text(WHOLE + "\n"), ":3", "is empty"),
        (lambda log: log.write_text('{"iteration": 1, "loss": "x"}\n'), ":1 loss", "loss is 'x': it must be a number"),
    ],
)
def test_a_log_that_is_none_is_told_by_its_line(tmp_path: Path, make: Callable[[Path], object], place: str, words: str):
    """It is left as it is; the advice puts it aside."""
    log = tmp_path / "metrics.jsonl"
    make(log)
    with pytest.raises(EvditError) as caught:
        Metrics(tmp_path, 2)
    assert words in caught.value.what and caught.value.where == f"{log}{place}" and caught.value.exit_code == USAGE
    assert caught.value.next_steps[-1].startswith(f"mv -n {log} {log}.damaged")
    assert log.exists()


def test_a_log_that_was_put_aside_leaves_the_loss_unknown(tmp_path: Path):
    """A card says so."""
    assert losses_in(tmp_path / "metrics.jsonl") == () and loss_told(last_loss(tmp_path / "metrics.jsonl")) == "unknown"
    assert loss_told(json.loads("0.123456")) == "0.1235"
