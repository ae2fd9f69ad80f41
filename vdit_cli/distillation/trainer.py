"""The one training loop: every stage that learns calls `train` with its own loss.

Randomness is counted, not carried: iteration i draws from generators seeded by (seed, i), so a resumed run repeats
an uninterrupted one exactly and a checkpoint holds no generator state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vdit_cli.artifacts.atomic import write_text
from vdit_cli.distillation.checkpoints import TrainingState, newest_checkpoint, save_checkpoint
from vdit_cli.distillation.optimisers import Optimisers, learning_rate_share, update_average
from vdit_cli.errors import FAILED, EvditError, Interrupted
from vdit_cli.recipe import TrainingOptions
from vdit_cli.timing import Progress

LossTerms = dict[str, Tensor]
"""Named scalar tensors; `"loss"` is the one that is minimised."""


@dataclass(frozen=True)
class Trained:
    """What a finished loop leaves: the moving average of the parameters and the seconds it took in all."""

    average: dict[str, Tensor]
    iterations: int
    seconds: float


def seeded_generators(seed: int, iteration: int, device: torch.device) -> tuple[torch.Generator, torch.Generator]:
    """Two generators for one iteration, on the CPU (what is drawn) and on `device` (noise)."""
    number = (seed * 1_000_003 + iteration) * 2
    on_cpu = torch.Generator().manual_seed(number)
    return on_cpu, torch.Generator(device=device).manual_seed(number + 1)


def train(
    model: nn.Module,
    optimisers: Optimisers,
    loss: Callable[[int, torch.Generator, torch.Generator], LossTerms],
    options: TrainingOptions,
    label: str,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> Trained:
    """Train `model` until `options.iterations`, going on from the newest checkpoint in `folder` where there is one.

    `loss(iteration, cpu_generator, device_generator)` returns the loss terms of one batch. Metrics go to
    `folder/metrics.jsonl`, states to `folder/checkpoints`. Raises Interrupted after saving when the person asks to
    stop, and EvditError where a loss is not finite; the last good checkpoint stays.
    """
    named = dict(model.named_parameters())  # names shared weights once, which a state_dict does not
    folder.mkdir(parents=True, exist_ok=True)
    average = {name: parameter.detach().float().clone() for name, parameter in named.items()}
    start, seconds = _resume(model, average, optimisers, folder, device, progress)
    metrics = _Metrics(folder / "metrics.jsonl", start)
    progress.stage(label, options.iterations - start)
    clock = time.perf_counter()

    def save(iteration: int) -> str:
        note = metrics.write(label)  # first: a loss that is not finite must not be saved
        spent = seconds + time.perf_counter() - clock
        states = [optimiser.state_dict() for optimiser in optimisers.stepped]
        save_checkpoint(
            folder / "checkpoints",
            TrainingState(iteration, spent, named, average, states),
            options.keep_last,
        )
        return note

    for iteration in range(start, options.iterations):
        share = learning_rate_share(
            iteration, options.iterations, options.warmup, options.flat_share, options.final_share
        )
        terms = _step(model, optimisers, loss, options, seed, iteration, share, device)
        update_average(average.values(), named.values(), min(options.average_keep, (1 + iteration) / (10 + iteration)))
        metrics.keep(iteration, share, terms)
        done = iteration + 1
        stopping = progress.should_stop() and done < options.iterations
        note = ""
        if done % options.checkpoint_every == 0 or done == options.iterations or stopping:
            note = save(done)
        elif done % options.log_every == 0:
            note = metrics.write(label)
        progress.advance(note)
        if stopping:
            raise Interrupted(
                f"{label} stopped after {done} of {options.iterations} iterations, all saved",
                next_steps=["the same command again goes on from there"],
            )
    return Trained(average, options.iterations, seconds + time.perf_counter() - clock)


@torch.no_grad()
def put_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy `values` into the parameters of the same names. Raises ValueError where the names differ."""
    named = dict(model.named_parameters())
    if named.keys() != values.keys():
        raise ValueError(f"parameters differ from the saved ones: {sorted(named.keys() ^ values.keys())[:3]}")
    for name, parameter in named.items():
        parameter.copy_(values[name])


def _resume(
    model: nn.Module,
    average: dict[str, Tensor],
    optimisers: Optimisers,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> tuple[int, float]:
    """Put the newest checkpoint into the model, its average and optimisers; returns (iteration, seconds)."""
    state, damaged = newest_checkpoint(folder / "checkpoints", device)
    for line in damaged:
        progress.say(line)
    if state is None:
        return 0, 0.0
    put_parameters(model, state.model)
    for name, tensor in average.items():
        tensor.copy_(state.average[name])
    for optimiser, saved in zip(optimisers.stepped, state.optimisers, strict=True):
        optimiser.load_state_dict(saved)
    return state.iteration, state.seconds


def _step(
    model: nn.Module,
    optimisers: Optimisers,
    loss: Callable[[int, torch.Generator, torch.Generator], LossTerms],
    options: TrainingOptions,
    seed: int,
    iteration: int,
    share: float,
    device: torch.device,
) -> LossTerms:
    """One iteration: loss, gradients, clipping, one step of each optimiser."""
    on_cpu, on_device = seeded_generators(seed, iteration, device)
    terms = loss(iteration, on_cpu, on_device)
    terms["loss"].backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), options.clip, foreach=True)
    optimisers.step(share)
    for parameter in model.parameters():
        parameter.grad = None
    return {name: value.detach() for name, value in terms.items()} | {"gradient_norm": norm.detach()}


class _Metrics:
    """Loss terms gathered on the device and appended to a JSONL file, a line a window of iterations."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        self.window: list[LossTerms] = []
        self.last = (start, 0.0)
        self.clock = time.perf_counter()
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            # Lines after the checkpoint belong to iterations that are about to be done again.
            kept = [line for line in lines if line.endswith("}") and json.loads(line)["iteration"] <= start]
            write_text(path, "".join(line + "\n" for line in kept))

    def keep(self, iteration: int, rate_share: float, terms: LossTerms) -> None:
        """Gather one iteration's terms; nothing is read from the device yet."""
        self.window.append(terms)
        self.last = (iteration + 1, rate_share)

    def write(self, label: str) -> str:
        """Append the window's means as a line; returns a short note. Raises EvditError for a loss that isn't finite."""
        if not self.window:
            return ""
        names = list(self.window[0])
        means = torch.stack([torch.stack([terms[name].float() for terms in self.window]).mean() for name in names])
        iteration, rate_share = self.last
        now = time.perf_counter()
        values = dict(zip(names, means.tolist(), strict=True))
        speed = len(self.window) / (now - self.clock)
        self.window, self.clock = [], now
        if not math.isfinite(values["loss"]):
            raise EvditError(
                f"{label}: the loss is {values['loss']} at iteration {iteration}; the last good checkpoint is kept",
                where=str(self.path),
                next_steps=["a smaller learning rate", "another seed"],
                exit_code=FAILED,
            )
        line = {"iteration": iteration, "rate_share": rate_share, "iterations_per_second": speed, **values}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return f"loss {values['loss']:.4f}  {speed:.1f} it/s"
