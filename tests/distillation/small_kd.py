"""A knowledge distillation of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vdit_cli.distillation.distill_kd import distill_kd
from vdit_cli.recipe_training import DistillKdOptions
from vdit_cli.timing import Progress, Silent

SMALL: dict[str, Any] = {
    "masks": "1:2",
    "iterations": 6,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "warmup": 1,
    "checkpoint_every": 2,
    "log_every": 1,
    "previews": 0,
    "device": "cpu",
}


def distill_small_kd(
    model: Path,
    data: Path | None,
    run: Path,
    progress: Progress | None = None,
    allow_changed: bool = False,
    **changes: Any,
) -> Path:
    """The student's folder of a knowledge distillation with SMALL options, `changes` made."""
    options = DistillKdOptions(model=str(model), data=data and str(data), **{**SMALL, **changes})
    return distill_kd(options, run, progress or Silent(), allow_changed)
