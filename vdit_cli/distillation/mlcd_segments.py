"""A student's segments: where they are cut, how often each is drawn, and the loss of each.

Segments are told as a sampler takes them: segment 0 begins at pure noise, the last one ends on clean data.
Letters: B batch, M segments, T timesteps of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from vdit_cli.diffusion.milestones import CLEAN, Milestones, shortest
from vdit_cli.distillation.samples import LossTerms, Samples
from vdit_cli.errors import EvditError, setting
from vdit_cli.recipe_training import DistillMlcdOptions
from vdit_cli.sampling.announcement import counted

CPU = torch.device("cpu")


def segments_of(options: DistillMlcdOptions, steps: int, timesteps: int, points: int = 1) -> Milestones:
    """The segments of the student of `steps` steps: cut where the options say it for so many steps, else evenly."""
    placed = options.milestones if len(options.milestones) == steps else ()
    return Milestones(steps, points, timesteps, placed)


def shares_of(options: DistillMlcdOptions, steps: int) -> tuple[float, ...]:
    """The share of the samples in each segment of that student, their sum 1; alike where none are told for it."""
    asked = options.segment_shares if len(options.segment_shares) == steps else (1.0,) * steps
    return tuple(share / sum(asked) for share in asked)


def drawn_segments(samples: Samples, shares: Sequence[float]) -> Tensor:
    """The segment of each sample (B,), drawn by the shares."""
    edges = torch.tensor(list(accumulate(shares))[:-1], dtype=torch.float64)
    return torch.bucketize(replace(samples, device=CPU).uniform("segment").double(), edges, right=True)


def held_segments(held: int, steps: int) -> Tensor:
    """The segment of each held-out clip (held,): as many in each as can be, and always the same."""
    return torch.arange(held) * steps // held


def shares_among(segments: Tensor, steps: int) -> tuple[float, ...]:
    """The share of each of `steps` segments in `segments`."""
    return tuple(count / len(segments) for count in segments.bincount(minlength=steps).tolist())


def times_in(path: Milestones, segment_B: Tensor, samples: Samples) -> tuple[Tensor, Tensor, Tensor]:
    """(t, u, tau) of samples in these segments, t drawn from the teacher's points in it."""
    above_B = replace(samples, device=CPU).integers("time", path.points)
    times = path.at(1 + (path.steps - 1 - segment_B) * path.points + above_B)
    return tuple(each.to(samples.device) for each in times)  # type: ignore[return-value]


def means_by_segment(losses: dict[str, Tensor], segment_B: Tensor, shares: Sequence[float]) -> LossTerms:
    """The means of losses (B,), and of "loss" also in each segment: `loss_segment_0` begins at pure noise.

    What falls into a segment counts against its share of the samples, so that the mean over parts, ranks and iterations
    is right even where some of them have nothing there. A segment without a share has no term.
    """
    terms = {name: loss_B.mean() for name, loss_B in losses.items()}
    loss_B = losses["loss"].detach()
    here_B = segment_B.to(loss_B.device)
    return terms | {
        f"loss_segment_{m}": (loss_B * (here_B == m)).mean() / share for m, share in enumerate(shares) if share
    }


def check_segments(options: DistillMlcdOptions, counts: Sequence[int], timesteps: int) -> None:
    """Raise EvditError (2) for milestones or shares that fit no student of these `counts`, or can't be."""
    for key in ("milestones", "segment_shares"):
        given = getattr(options, key)
        if given and len(given) not in counts:
            verb = "is" if len(given) == 1 else "are"
            who = "a student" if len(counts) == 1 else "students"
            has = f"{'has' if len(counts) == 1 else 'have'} {' or '.join(map(str, counts))} of them"
            why = f"{verb} {counted(len(given), 'number')}: {who} of --steps {options.steps} {has}"
            raise _refused(options, key, why, f"--steps {len(given)}")
    shares, placed, points = options.segment_shares, options.milestones, max(options.teacher_points)
    if not all(share > 0 for share in shares):
        fix = setting("distill_mlcd.segment_shares", [1] * len(shares))
        raise _refused(options, "segment_shares", "must each be above 0", fix)
    if not placed:
        return
    fix = setting("distill_mlcd.milestones", Milestones(len(placed), 1, timesteps).sampled)
    if any(above <= below for above, below in pairwise((*placed, CLEAN))) or placed[0] >= timesteps:
        raise _refused(options, "milestones", f"must fall from at most {timesteps - 1} to at least 0", fix)
    room, substeps = shortest(placed), options.teacher_substeps
    if points <= room < points * substeps:
        raise _refused(
            options,
            "milestones",
            f"leave {counted(room, 'timestep')} to a segment of {points} teacher points with {substeps} substeps each",
            setting("distill_mlcd.teacher_substeps", room // points),
        )
    if room < points:
        fitting = [min(each, room) for each in options.teacher_points]
        fitting = fitting if options.teacher_shares else list(dict.fromkeys(fitting))
        fewer = setting("distill_mlcd.teacher_points", fitting)
        raise _refused(
            options,
            "milestones",
            f"leave {counted(room, 'timestep')} to a segment of {points} teacher points",
            fix,
            fewer,
        )


def _refused(options: DistillMlcdOptions, key: str, why: str, *fixes: str) -> EvditError:
    """The error for a list of numbers that does not fit, told as it is typed."""
    given: Sequence[Any] = getattr(options, key)
    numbers = ",".join(f"{each:g}" for each in given)
    return EvditError(
        f"{key} [{numbers}] {why}",
        where=options.where(key) or f"distill_mlcd.{key}",
        next_steps=[*fixes, setting(f"distill_mlcd.{key}", [])],
    )
