"""The one training loop: every stage that learns calls `train` with its own loss, on one rank or on many.

Randomness is counted, not carried: what iteration i draws depends on the seed and i alone, so a resumed run repeats
an uninterrupted one exactly and a checkpoint holds no generator state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vdit_cli.distillation.checkpoints import (
    TrainingState,
    checkpoint_place,
    drop_older,
    newest_checkpoint,
    newest_iteration,
    save_checkpoint,
    what_is_kept,
)
from vdit_cli.distillation.fitting import number_format
from vdit_cli.distillation.metrics import Metrics
from vdit_cli.distillation.optimisers import Optimisers, learning_rate_share, update_average
from vdit_cli.distillation.samples import LossTerms, Samples, SplitLoss, WholeLoss, parts_of, split_loss
from vdit_cli.errors import FAILED, EvditError, Interrupted
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.parallel.sharding import is_sharded, local, placed_like, whole
from vdit_cli.recipe_training import RankedTrainingOptions, TrainingOptions
from vdit_cli.timing import Progress

GRADIENT_NORM = "gradient_norm"
FAR_ABOVE = 1000.0
"""So many times the clip, gradients tell more of rounding than of the loss [ours: healthy ones here were below 30]."""


@dataclass(frozen=True)
class Trained:
    """What a finished loop leaves: the moving average of the parameters and the seconds it took in all.

    The average of a sharded model is sharded too; `parallel.sharding` gathers it.
    """

    average: dict[str, Tensor]
    iterations: int
    seconds: float


def train(
    model: nn.Module,
    optimisers: Optimisers,
    loss: SplitLoss | WholeLoss,
    options: TrainingOptions,
    label: str,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: Progress,
    *,
    ranks: Ranks = ALONE,
    follow: Callable[[float], None] = lambda keep: None,
    held_out: Callable[[int], LossTerms] | None = None,
    watch: Callable[[int, Mapping[str, Tensor]], None] = lambda iteration, average: None,
) -> Trained:
    """Train `model` until `options.iterations`, going on from the newest checkpoint in `folder` where there is one.

    Gradients are those of the whole batch on any number of ranks and parts, for a model that `fit_model` sharded as for
    one that each rank holds whole. After each step the average and, by `follow(keep)`, a target network move. Before
    the first one and after each checkpoint `watch(iteration, average)` looks, and may raise: the checkpoints before are
    still there. Metrics (what `held_out` gives among them) and checkpoints go to `folder`. Raises Interrupted after
    saving when asked to stop, and EvditError (1) where a loss or gradient is not finite, before any weight moves.
    """
    ranked = options if isinstance(options, RankedTrainingOptions) else RankedTrainingOptions()
    loss = split_loss(loss, ranks.count * ranked.accumulation)
    named = dict(model.named_parameters())  # names shared weights once, which a state_dict does not
    if not is_sharded(named.values()):
        ranks.spread(named.values())
    average = {name: parameter.detach().float().clone() for name, parameter in named.items()}
    start, seconds = _resume(named, average, optimisers, folder, options.iterations, device, progress, ranks)
    metrics = Metrics(folder, start, ranked.tensorboard, ranks)
    progress.stage(label, options.iterations - start)
    clock = time.perf_counter()
    watch(start, average)
    for done in range(start + 1, options.iterations + 1):
        share, keep = _rate_share(options, done - 1), min(options.average_keep, done / (9 + done))
        parts = parts_of(seed, done - 1, options.batch_size, device, ranks.rank, ranks.count, ranked.accumulation)
        terms = _gradients(model, loss, parts, options.clip, ranks)
        stopping, is_broken = ranks.any(progress.should_stop(), not _is_finite(terms))
        if is_broken:
            raise _not_finite(model, terms, label, done, folder, _cures(options, device))
        optimisers.step(share)
        model.zero_grad(set_to_none=True)
        update_average(average.values(), named.values(), keep)
        follow(keep)
        metrics.keep(done, share, terms)
        note, is_saved = "", done % options.checkpoint_every == 0 or done == options.iterations or stopping
        if is_saved or done % options.log_every == 0:
            note = _written(metrics, label, held_out(done - 1) if held_out else None, options, device, progress)
        if is_saved:
            spent = seconds + time.perf_counter() - clock
            state = TrainingState(done, spent, named, average, [each.state_dict() for each in optimisers.stepped])
            save_checkpoint(folder / "checkpoints", state, ranks)
            watch(done, average)
            drop_older(folder / "checkpoints", options.keep_last, ranks)
        progress.advance(note)
        if stopping and done < options.iterations:
            raise _stopped(label, done, options.iterations)
    return Trained(average, options.iterations, seconds + time.perf_counter() - clock)


@torch.no_grad()
def put_parameters(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy `values` into the parameters of the same names. Raises ValueError where the names differ."""
    named = dict(model.named_parameters())
    if named.keys() != values.keys():
        raise ValueError(f"parameters differ from the saved ones: {sorted(named.keys() ^ values.keys())[:3]}")
    for name, parameter in named.items():
        parameter.copy_(placed_like(values[name], parameter))


def _rate_share(options: TrainingOptions, iteration: int) -> float:
    return learning_rate_share(iteration, options.iterations, options.warmup, options.flat_share, options.final_share)


@torch.no_grad()
def _resume(
    named: Mapping[str, nn.Parameter],
    average: dict[str, Tensor],
    optimisers: Optimisers,
    folder: Path,
    iterations: int,
    device: torch.device,
    progress: Progress,
    ranks: Ranks,
) -> tuple[int, float]:
    """Put the newest checkpoint into the model, its average and optimisers; returns (iteration, seconds)."""
    like: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in named.items()}
    like |= {f"average.{name}": tensor for name, tensor in average.items()}
    moved = [[p for group in each.param_groups for p in group["params"]] for each in optimisers.stepped]
    slots = ("exp_avg", "exp_avg_sq", "momentum_buffer")
    for number, parameters in enumerate(moved):
        like |= {f"optimiser-{number}.{i}.{slot}": p for i, p in enumerate(parameters) for slot in slots}
    state, damaged = newest_checkpoint(folder / "checkpoints", device, like, ranks)
    for line in damaged:
        progress.say(line)
    if state is None:
        return 0, 0.0
    if state.iteration > iterations:
        raise _of_other_values(folder, f"it is at iteration {state.iteration}, and {iterations} are asked for")
    for saved, held in ((state.model, named), (state.average, average)):
        if saved.keys() != held.keys():
            only = sorted(saved.keys() ^ held.keys())[0]
            raise _of_other_values(folder, f"it holds other parameters ({only} is in one of the two only)")
        for name, tensor in held.items():
            if saved[name].shape != tensor.shape:
                sizes = f"{list(saved[name].shape)}, not {list(tensor.shape)}"
                raise _of_other_values(folder, f"its {name} is {sizes}")
            tensor.copy_(placed_like(saved[name], tensor))
    for optimiser, content, parameters in zip(optimisers.stepped, state.optimisers, moved, strict=True):
        for index, values in content["state"].items():
            for slot, value in values.items():
                if isinstance(value, Tensor):
                    values[slot] = placed_like(value, parameters[index])
        optimiser.load_state_dict(content)
    return state.iteration, state.seconds


def _of_other_values(folder: Path, why: str) -> EvditError:
    """The error for a checkpoint that the values asked for do not go on from."""
    return EvditError(
        f"the checkpoint in {folder} does not fit what is asked for: {why}",
        where=str(folder / "checkpoints"),
        next_steps=["the values that the run was begun with", "a new folder with -o"],
    )


def _gradients(model: nn.Module, loss: SplitLoss, parts: list[Samples], clip: float, ranks: Ranks) -> dict[str, Tensor]:
    """Put the whole batch's gradients, clipped, into the model: of this rank's parts, summed over the ranks.

    Returns this rank's share of each mean over the batch, to be summed over the ranks.
    """
    sharded = is_sharded(model.parameters())
    totals: LossTerms = {}
    for samples in parts:
        terms = loss.of(samples)
        weight = samples.count / samples.batch_size
        # Shards' gradients come averaged over the ranks where a sum is meant.
        (terms["loss"] * (weight * (ranks.count if sharded else 1))).backward()
        for name, value in terms.items():
            part = value.detach() * weight
            totals[name] = totals[name] + part if name in totals else part
    if not sharded:
        ranks.sum_gradients(model.parameters())
    norm = whole(nn.utils.clip_grad_norm_(model.parameters(), clip, foreach=True)).detach()
    return totals | {GRADIENT_NORM: norm / ranks.count}


def _stopped(label: str, done: int, iterations: int) -> Interrupted:
    return Interrupted(
        f"{label} stopped after {done} of {iterations} iterations, all saved",
        next_steps=["the same command again goes on from there"],
    )


def _is_finite(terms: LossTerms) -> bool:
    return bool(torch.stack([terms["loss"].float(), terms[GRADIENT_NORM].float()]).isfinite().all())


def _not_finite(
    model: nn.Module, terms: LossTerms, label: str, iteration: int, folder: Path, cures: list[str]
) -> EvditError:
    """The error for an iteration whose loss or gradients are not finite; the gradients are thrown away."""
    broken = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not local(parameter.grad).isfinite().all()
    ]
    model.zero_grad(set_to_none=True)
    loss = float(terms["loss"])
    what = f"the loss is {loss}"
    if math.isfinite(loss):
        more = f" and of {len(broken) - 1} more" if len(broken) > 1 else ""
        what = f"the gradient of {broken[0]}{more} is not finite" if broken else "another rank's loss is not finite"
    kept = folder / "checkpoints"
    done = newest_iteration(kept)
    back = [f"an earlier start, without {checkpoint_place(kept, done)}, where that fails too"] if done else []
    return EvditError(
        f"{label}: {what} at iteration {iteration}; {what_is_kept(done)}",
        where=str(folder),
        next_steps=[*cures, *back, "another seed, in a new folder"],
        exit_code=FAILED,
    )


def _written(
    metrics: Metrics,
    label: str,
    held_out: LossTerms | None,
    options: TrainingOptions,
    device: torch.device,
    progress: Progress,
) -> str:
    """Write the metrics, warn once of gradients that are finite and lead nowhere, and return the metrics' note."""
    note = metrics.write(label, held_out)
    norm, clip = metrics.latest[GRADIENT_NORM], options.clip
    if norm > FAR_ABOVE * clip and not metrics.is_warned:
        metrics.is_warned = True
        progress.say(
            f"warning: {label}: the mean norm of the gradients is {norm:.2g} at iteration {metrics.last[0]}, of which "
            f"clip keeps {clip:g}: they tell of rounding more than of the loss; "
            f"try {' or '.join(_cures(options, device))}"
        )
    return note


def _cures(options: TrainingOptions, device: torch.device) -> list[str]:
    """What may help where gradients are lost, as next steps."""
    is_half = isinstance(options, RankedTrainingOptions) and number_format(options.precision, device) != "float32"
    return [*(["precision=float32"] if is_half else []), "a smaller learning rate"]
