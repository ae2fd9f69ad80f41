"""A training of seconds."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.trainer import Trained, train
from vdit_cli.recipe_training import TrainingOptions
from vdit_cli.timing import Progress, Silent

ITERATIONS = 23


def train_small(
    folder: Path,
    kill_at: int | None = None,
    nan_at: int | None = None,
    progress: Progress | None = None,
    scale: float = 1.0,
    kind: type[TrainingOptions] = TrainingOptions,
    **more: Any,
) -> tuple[nn.Module, Trained]:
    """Learn to reverse four numbers; the process kills itself at `kill_at`, the loss is NaN at `nan_at`.

    `scale` is how often the loss counts; `more` are options, of another `kind`.
    """
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    optimisers = build_optimisers(
        model, lambda name, p: p.ndim == 2, matrix_rate=0.02, rate=0.02, betas=(0.9, 0.99), matrix_decay=0.01
    )

    def loss(iteration: int, on_cpu: torch.Generator, on_device: torch.Generator) -> dict[str, torch.Tensor]:
        if iteration == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        x = torch.randn(16, 4, generator=on_cpu) + 0.01 * torch.randn(16, 4, generator=on_device)
        value = scale * (model(x) - x.flip(-1)).square().mean()
        return {"loss": value * float("nan") if iteration == nan_at else value}

    options = kind(iterations=ITERATIONS, warmup=3, average_keep=0.9, checkpoint_every=5, log_every=4, **more)
    trained = train(model, optimisers, loss, options, "small", 7, folder, torch.device("cpu"), progress or Silent())
    return model, trained
