"""The times of multi-step consistency distillation: milestones, and the teacher's grid inside each segment.

A time is a timestep index t of a `NoiseSchedule`, or CLEAN, which lies below index 0: a = 1, s = 0.
Letters: M student steps, N points of the teacher's grid, T timesteps of the table, B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.errors import EvditError, setting

CLEAN = -1
"""The time of clean data."""


@dataclass(frozen=True)
class Milestones:
    """M segments of the trajectory, each with `points` steps of the teacher: N = M points.

    The grid is g_0 = CLEAN and g_j = round(j T / N) - 1, so g_N = T - 1; the milestones are tau_m = g_(m points), the
    same for any number of points. With `placed`, tau_M .. tau_1 as a sampler takes them, the milestones are these and
    the grid is even within each segment: at tau_m + round(i (tau_(m+1) - tau_m) / points).
    Raises EvditError for fewer than one step or point and for more points than T; ValueError for `placed` times that
    are not M falling ones below T, or leave a segment with fewer timesteps than points.
    """

    steps: int
    points: int = 1
    timesteps: int = 1000
    placed: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise EvditError(f"{self.steps} steps can't be taken: steps must be at least 1", next_steps=["--steps 4"])
        if self.points < 1:
            raise EvditError(
                f"{self.points} teacher points a segment can't be: there must be at least 1",
                where="distill_mlcd.teacher_points",
                next_steps=[setting("distill_mlcd.teacher_points", [2, 5, 25])],
            )
        if self.steps * self.points > self.timesteps:
            most = self.timesteps // self.steps
            raise EvditError(
                f"{self.steps} steps of {self.points} teacher points are {self.steps * self.points} points: the noise "
                f"schedule has {self.timesteps} timesteps",
                where="distill_mlcd.teacher_points",
                next_steps=[setting("distill_mlcd.teacher_points", [most])] if most else ["fewer --steps"],
            )
        if self.placed and (len(self.placed) != self.steps or self.placed[0] >= self.timesteps):
            raise ValueError(f"{self.placed} are not {self.steps} milestones below {self.timesteps}")
        if self.placed and shortest(self.placed) < self.points:
            raise ValueError(f"{self.placed} leave no room for {self.points} points in each segment")

    @property
    def grid(self) -> tuple[int, ...]:
        """g_0 .. g_N, rising; g_0 is CLEAN."""
        if self.placed:
            times, points = (CLEAN, *reversed(self.placed)), self.points
            inside = (
                low + (2 * i * (high - low) + points) // (2 * points)
                for low, high in pairwise(times)
                for i in range(1, points + 1)
            )
            return (CLEAN, *inside)
        count = self.steps * self.points
        # Whole numbers only: j T / N in floating point rounds differently from one count of points to another.
        return tuple((2 * j * self.timesteps + count) // (2 * count) - 1 for j in range(count + 1))

    @property
    def times(self) -> tuple[int, ...]:
        """tau_0 .. tau_M, rising; tau_0 is CLEAN and tau_M is T - 1."""
        return self.grid[:: self.points]

    @property
    def sampled(self) -> tuple[int, ...]:
        """The M times at which the student is asked when it samples, noisiest first: tau_M .. tau_1."""
        return self.times[:0:-1]

    def at(self, j_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t, u, tau) of the grid points j in 1 .. N: t = g_j, u = g_(j-1), tau the milestone at or next below u."""
        grid = torch.tensor(self.grid)
        below = j_B - 1
        return grid[j_B], grid[below], grid[below // self.points * self.points]


def shortest(placed: Sequence[int]) -> int:
    """The timesteps of the shortest segment of milestones, noisiest first, down to CLEAN; below 1 where they rise."""
    return min(above - below for above, below in pairwise((*placed, CLEAN)))


def points_at(iteration: int, iterations: int, points: Sequence[int], shares: Sequence[float] = ()) -> int:
    """The teacher points of `iteration` (0-based) in a curriculum from coarse to fine.

    Entry i of `points` holds for shares[i] of the iterations, all alike where `shares` is empty.
    """
    shares = shares or [1.0] * len(points)
    done, reached = 0.0, sum(shares) * (iteration + 0.5) / iterations
    for count, share in zip(points, shares, strict=True):
        done += share
        if reached < done:
            return count
    return points[-1]


def signal_and_noise(schedule: NoiseSchedule, t_B: Tensor) -> tuple[Tensor, Tensor]:
    """a and s at the times t, each (B, 1, 1, 1, 1) float64 on the device of t; CLEAN has a = 1 and s = 0."""
    alphas, sigmas = schedule.alphas.to(t_B.device), schedule.sigmas.to(t_B.device)
    index, is_clean = t_B.clamp(min=0), t_B == CLEAN
    a = torch.where(is_clean, 1.0, alphas[index])
    s = torch.where(is_clean, 0.0, sigmas[index])
    return a.view(-1, 1, 1, 1, 1), s.view(-1, 1, 1, 1, 1)
