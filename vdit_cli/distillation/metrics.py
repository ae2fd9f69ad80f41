"""What a training says of itself: a line of metrics.jsonl a window of iterations, and TensorBoard where asked."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdit_cli.artifacts.atomic import write_text
from vdit_cli.distillation.checkpoints import newest_iteration, what_is_kept
from vdit_cli.errors import ENVIRONMENT, FAILED, EvditError
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.reader import Index, read_last, read_lines


@dataclass(frozen=True)
class Line:
    """What is read of a line of metrics.jsonl."""

    iteration: Index
    loss: float


class Metrics:
    """Loss terms gathered on the device and appended to `folder/metrics.jsonl`, a line a window of iterations.

    Each rank keeps its share of every mean; a line holds their sums, and the first rank writes it. Lines after
    iteration `start` are dropped: those iterations are about to be done again.
    """

    def __init__(self, folder: Path, start: int, tensorboard: bool = False, ranks: Ranks = ALONE) -> None:
        self.path = folder / "metrics.jsonl"
        self.ranks = ranks
        folder.mkdir(parents=True, exist_ok=True)
        self.window: list[dict[str, Tensor]] = []
        self.latest: dict[str, float] = {}
        """The means of the window that was written last."""
        self.is_warned = False
        self.last = (start, 0.0)
        self.clock = time.perf_counter()
        self.board = open_board(folder / "tensorboard", start) if tensorboard and ranks.is_first else None
        ranks.from_first(lambda: drop_after(self.path, Line, start))

    def keep(self, done: int, rate_share: float, terms: dict[str, Tensor]) -> None:
        """Gather the terms of an iteration, the `done`th; nothing is read from the device yet."""
        self.window.append(terms)
        self.last = (done, rate_share)

    def write(self, label: str, held_out: dict[str, Tensor] | None = None) -> str:
        """Append the window's means as a line, this rank's shares of `held_out` terms beside; returns a short note.

        Raises EvditError for a number that is not finite: nothing of it is written.
        """
        if not self.window:
            return ""
        means = {name: torch.stack([terms[name].float() for terms in self.window]).mean() for name in self.window[0]}
        means |= {f"held_out_{name}": term.float() for name, term in (held_out or {}).items()}
        iteration, rate_share = self.last
        now = time.perf_counter()
        values = dict(zip(means, self.ranks.sum(torch.stack(list(means.values()))).tolist(), strict=True))
        self.latest = values
        speed = len(self.window) / (now - self.clock)
        self.window, self.clock = [], now
        for name, value in values.items():
            if not math.isfinite(value):
                raise EvditError(
                    f"{label}: {name} is {value} at iteration {iteration}; "
                    f"{what_is_kept(newest_iteration(self.path.parent / 'checkpoints'))}",
                    where=str(self.path),
                    next_steps=["a smaller learning rate", "another seed, in a new folder"],
                    exit_code=FAILED,
                )
        if self.ranks.is_first:
            self._append({"iteration": iteration, "rate_share": rate_share, "iterations_per_second": speed, **values})
        beside = f" ({values['held_out_loss']:.4f} held out)" if held_out is not None else ""
        return f"loss {values['loss']:.4f}{beside}  {speed:.1f} it/s"

    def _append(self, line: dict[str, float]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name, value in line.items():
                if name != "iteration":
                    self.board.add_scalar(name, value, int(line["iteration"]))
            self.board.flush()


def drop_after(log: Path, form: type, iteration: int) -> str:
    """Forget the lines of a log after `iteration`, and one cut short: what they tell is about to be done again.

    A log that is missing stays so. Raises EvditError for a damaged one; returns nothing, for all ranks to hear.
    """
    lines = read_lines(form, log, "log")
    if log.exists():
        write_text(log, "".join(json.dumps(line) + "\n" for line in lines if line["iteration"] <= iteration))
    return ""


def losses_in(metrics: Path) -> tuple[float, ...]:
    """The training loss of each line of a metrics.jsonl."""
    return tuple(line["loss"] for line in read_lines(Line, metrics, "log"))


def last_loss(metrics: Path) -> float | None:
    """The training loss of the last line of a metrics.jsonl, None where that has none any more."""
    last = read_last(Line, metrics, "log")
    return last["loss"] if last else None


def loss_told(loss: float | None) -> str:
    """A loss for a card; one whose log is gone is unknown."""
    return "unknown" if loss is None else f"{loss:.4g}"


def open_board(folder: Path, start: int) -> Any:
    """A TensorBoard writer whose events after `start` are purged. Raises EvditError (3) without the package."""
    if importlib.util.find_spec("tensorboard") is None:
        raise EvditError(
            "tensorboard was asked for, and is not installed",
            where="tensorboard",
            next_steps=["pip install 'evdit[train]'", "tensorboard=false: metrics.jsonl has the same figures"],
            exit_code=ENVIRONMENT,
        )
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start + 1)
