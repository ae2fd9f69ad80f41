"""Trainings of seconds on any number of ranks: `python -m tests.distillation.ranks_training FOLDER SCENARIO...`.

A scenario is NAME:shard:accumulation:iterations[:event]; its run stands in FOLDER/NAME and goes on where it is.
Event kill9: the last rank kills itself at iteration 9. Event stop5: at 5 it presses Ctrl-C on the launcher.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import torch
from torch import Tensor, nn

from vdit_cli.cli.app import explain
from vdit_cli.cli.console import Console
from vdit_cli.distillation.fitting import fit_model
from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.samples import Samples, SplitLoss
from vdit_cli.distillation.trainer import Trained, train
from vdit_cli.parallel.environment import LAUNCHER
from vdit_cli.parallel.groups import ALONE, Ranks, joined
from vdit_cli.parallel.sharding import whole_on_first
from vdit_cli.recipe_training import RankedTrainingOptions
from vdit_cli.timing import Progress, Silent

BATCH = 7
"""Not a multiple of ranks or parts, so that parts of unequal size are weighed."""


class Block(nn.Module):
    """A residual layer of an odd width."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        """x plus something of it."""
        return x + torch.tanh(self.inner(x))


class Net(nn.Module):
    """Blocks in a list, and a last layer that is narrower than there are ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 9)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.last = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One number a sample."""
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def train_net(
    folder: Path,
    ranks: Ranks = ALONE,
    shard: str = "none",
    accumulation: int = 1,
    iterations: int = 12,
    event: str = "",
    recompute: bool = False,
    progress: Progress | None = None,
) -> tuple[nn.Module, Trained]:
    """Learn a function of what is drawn by sample."""
    torch.manual_seed(3)
    device = torch.device("cpu")
    options = RankedTrainingOptions(
        iterations=iterations,
        batch_size=BATCH,
        warmup=2,
        flat_share=1.0,
        average_keep=0.9,
        checkpoint_every=4,
        log_every=1,
        clip=0.5,
        shard=shard,
        accumulation=accumulation,
        gradient_checkpointing=recompute,
    )
    model = Net()
    fit_model(model, list(model.blocks), options, ranks, device)
    rules = {"matrix_rate": 0.01, "rate": 0.01, "betas": (0.9, 0.99), "matrix_decay": 0.0}
    optimisers = build_optimisers(model, lambda name, parameter: False, **rules)

    def loss(samples: Samples) -> dict[str, Tensor]:
        if event == f"kill{samples.iteration}" and ranks.rank == ranks.count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == f"stop{samples.iteration}" and ranks.rank == ranks.count - 1:
            os.kill(int(os.environ[LAUNCHER]), signal.SIGINT)
            while not progress.should_stop():
                threading.Event().wait(0.01)
        x = samples.normal("x", 6)
        t = samples.integers("t", 1000).float() / 1000
        error = (model(x)[:, 0] - t * x.prod(1).sin() - x.sum(1)).square()
        return {"loss": error.mean(), "time": t.mean()}

    loss_of = SplitLoss(loss)
    trained = train(model, optimisers, loss_of, options, "net", 5, folder, device, progress or Silent(), ranks=ranks)
    return model, trained


def run_scenarios(folder: Path, scenarios: list[str]) -> None:
    """Run them one after another among the ranks that this process was started with."""
    with joined("cpu") as ranks, Console() as console:
        for scenario in scenarios:
            name, shard, parts, count, *event = scenario.split(":")
            place = folder / name
            _, done = train_net(place, ranks, shard, int(parts), int(count), "".join(event), progress=console)
            average = whole_on_first(done.average, ranks)
            if ranks.is_first:
                torch.save(average, place / "average.pt")


if __name__ == "__main__":
    try:
        run_scenarios(Path(sys.argv[1]), sys.argv[2:])
    except Exception as error:
        sys.exit(explain(error))
