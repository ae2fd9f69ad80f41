"""How near a student's step is to its teacher's path, segment by segment: how many of the teacher's steps it is worth.

The loss compares neighbouring points, and what adds up between them it does not show; this looks from end to end.
segments.json: schema evdit.segment-errors/1, "segments": [{"start": 749, "end": 499, "student": .21, "worth": 1.4,
"teacher": {"1": .34, "2": .13}}, ...]. Letters: B batch, C channels, F latent frames, h, w latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.diffusion.milestones import signal_and_noise
from vdit_cli.diffusion.prediction import x0_from
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.mlcd import Networks, straight
from vdit_cli.distillation.samples import LossTerms

SCHEMA = "evdit.segment-errors/1"
FILE = "segments.json"
COUNTS = (1, 2, 4, 8)
"""So many steps of the teacher are held against the truth beside the student's one."""


@dataclass(frozen=True)
class SegmentError:
    """Root mean square errors in x0 from time `start` to `end`: of the student, and of the teacher by its steps.

    The truth is where many steps of the teacher lead, of second order; those it is held against are DDIM's.
    """

    start: int
    end: int
    student: float
    teacher: Mapping[int, float]

    @property
    def worth(self) -> float:
        """The steps of the teacher that err as much as the student's one.

        Between two counts it is read off a straight line of logarithms; below one step errors count as the inverse of
        steps, and above the largest count it is that count.
        """
        counts = sorted(self.teacher)
        if self.student >= self.teacher[counts[0]]:
            return counts[0] * self.teacher[counts[0]] / self.student if self.student else float(counts[0])
        for few, many in pairwise(counts):
            high, low = self.teacher[few], self.teacher[many]
            if low <= self.student < high and low > 0:
                return few * (many / few) ** (math.log(high / self.student) / math.log(high / low))
        return float(counts[-1])


def segment_squares(
    networks: Networks, kind: str, schedule: NoiseSchedule, x0: Tensor, eps: Tensor, times: Sequence[int], truth: int
) -> LossTerms:
    """Mean squares of the errors in x0 of latents x0 and noise eps (B, C, F, h, w), by segment and by whose they are.

    `times` fall from the first milestone to the clean end; `truth` steps of the teacher, or as many as a segment has
    timesteps, are the truth. Names are "0 student", "0 teacher 4" and so on.
    """
    squares: LossTerms = {}
    for m, (start, end) in enumerate(pairwise(times)):
        t_B, u_B = (torch.full((len(x0),), time, device=x0.device) for time in (start, end))
        a, s = (each.to(x0) for each in signal_and_noise(schedule, t_B))
        x_t = a * x0 + s * eps

        def told(steps: int, order: int, x_t: Tensor = x_t, t_B: Tensor = t_B, u_B: Tensor = u_B) -> Tensor:
            """The x0 whose one step lands where so many of the teacher's do."""
            return straight(networks.teacher, kind, schedule, x_t, t_B, u_B, steps, order=order)[0]

        wanted = told(min(truth, start - end), 2)
        mine = x0_from(kind, networks.student(x_t, t_B).to(x0), x_t, a, s)
        squares[f"{m} student"] = (mine - wanted).square().mean()
        for count in COUNTS:
            if count < min(truth, start - end):
                squares[f"{m} teacher {count}"] = (told(count, 1) - wanted).square().mean()
    return squares


def segment_errors(squares: Mapping[str, float], times: Sequence[int]) -> list[SegmentError]:
    """The errors by segment out of `segment_squares`, for those that a step of the teacher could be held against."""
    found = []
    for m, (start, end) in enumerate(pairwise(times)):
        named = {count: f"{m} teacher {count}" for count in COUNTS}
        teacher = {count: math.sqrt(squares[name]) for count, name in named.items() if name in squares}
        if teacher:
            found.append(SegmentError(start, end, math.sqrt(squares[f"{m} student"]), teacher))
    return found


def write_errors(errors: Sequence[SegmentError], file: Path) -> None:
    """Write them as JSON, whole or not at all."""
    write_json(file, {"schema": SCHEMA, "segments": [{**asdict(each), "worth": each.worth} for each in errors]})


def error_lines(errors: Sequence[SegmentError]) -> list[str]:
    """The errors as lines of text."""
    return [
        f"from t = {each.start} to {max(each.end, 0)}: error in x0 {each.student:.4g}, as {told_worth(each)} of the "
        f"teacher's steps ({', '.join(f'{count}: {error:.4g}' for count, error in each.teacher.items())})"
        for each in errors
    ]


def told_worth(error: SegmentError) -> str:
    """The worth in words: "1.4", or "at least 8" where the student is nearer than all that was tried."""
    most = max(error.teacher)
    return f"at least {most}" if error.student <= error.teacher[most] else f"{error.worth:.2g}"
