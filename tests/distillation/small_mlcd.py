"""A distillation of seconds."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from vdit_cli.distillation.distill_mlcd import distill_mlcd
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.timing import Progress, Silent

SMALL: dict[str, Any] = {
    "steps": "4",
    "iterations": 6,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "warmup": 1,
    "checkpoint_every": 2,
    "log_every": 1,
    "previews": 0,
    "device": "cpu",
    "teacher_points": (2, 5),
}


class KillsAt(Silent):
    """Kills this process, as a power cut would, once so many iterations are done."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def advance(self, note: str = "") -> None:
        """Count down."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class StopsAt(Silent):
    """Ctrl-C after so many iterations."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def should_stop(self) -> bool:
        """Count down."""
        self.left -= 1
        return self.left == 0


def distill_small(
    model: Path, data: Path, run: Path, progress: Progress | None = None, allow_changed: bool = False, **changes: Any
) -> Path:
    """The student's folder of a distillation with SMALL options, `changes` made."""
    options = DistillMlcdOptions(model=str(model), data=str(data), **{**SMALL, **changes})
    return distill_mlcd(options, run, progress or Silent(), allow_changed)
