"""Milestones exact, grids inside segments, curricula, and look-ups that know clean data."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from vdit_cli.diffusion.milestones import CLEAN, Milestones, points_at, signal_and_noise
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.errors import EvditError


def test_milestones_written_out():
    assert Milestones(4).times == (CLEAN, 249, 499, 749, 999)
    assert Milestones(2, 25).times == (CLEAN, 499, 999)
    assert Milestones(4).sampled == (999, 749, 499, 249)
    assert Milestones(2, 2).grid == (CLEAN, 249, 499, 749, 999)
    assert Milestones(1000).sampled == tuple(range(999, -1, -1))


@given(some.integers(1, 60), some.integers(1, 16), some.sampled_from([960, 1000, 1021]))
def test_grids_are_even_and_never_move_a_milestone(steps, points, timesteps):
    path = Milestones(steps, points, timesteps)
    grid = path.grid
    assert len(grid) == steps * points + 1 and grid[0] == CLEAN and grid[-1] == timesteps - 1
    assert all(low < high for low, high in zip(grid, grid[1:], strict=False))
    exact = [Fraction(j * timesteps, steps * points) - 1 for j in range(len(grid))]
    assert all(abs(point - at) <= Fraction(1, 2) for point, at in zip(grid, exact, strict=True))
    assert path.times == Milestones(steps, 1, timesteps).times
    assert set(path.times) <= set(grid)


def test_every_point_has_the_one_below_and_its_own_milestone():
    path = Milestones(4, 5)
    t, u, tau = (times.tolist() for times in path.at(torch.arange(1, 21)))
    assert t == list(path.grid[1:]) and u == list(path.grid[:-1])
    for point, below, milestone in zip(t, u, tau, strict=True):
        assert milestone in path.times and milestone <= below < point
        assert not any(milestone < other < point for other in path.times), "tau is the milestone next below t"


def test_placed_milestones_written_out():
    path = Milestones(3, 2, placed=(999, 600, 99))
    assert path.times == (CLEAN, 99, 600, 999) and path.sampled == (999, 600, 99)
    assert path.grid == (CLEAN, 49, 99, 350, 600, 800, 999), "halves are rounded up"
    t, u, tau = (times.tolist() for times in path.at(torch.arange(1, 7)))
    assert (t, u) == ([49, 99, 350, 600, 800, 999], [CLEAN, 49, 99, 350, 600, 800])
    assert tau == [CLEAN, CLEAN, 99, 99, 600, 600]


@given(some.sets(some.integers(0, 40), min_size=1, max_size=6).map(sorted), some.integers(1, 9))
def test_grids_between_placed_milestones_are_even(gaps, points):
    """Against exact fractions; where the milestones are the even ones the grid is the one without them."""
    times, last = [], CLEAN
    for gap in gaps:
        last += points + gap
        times.append(last)
    path = Milestones(len(times), points, placed=tuple(reversed(times)))
    assert path.times == (CLEAN, *times) and all(low < high for low, high in pairwise(path.grid))
    for j, (low, high) in enumerate(pairwise((CLEAN, *times))):
        exact = [low + Fraction(i * (high - low), points) for i in range(points + 1)]
        inside = path.grid[j * points : (j + 1) * points + 1]
        assert all(abs(mine - wanted) <= Fraction(1, 2) for mine, wanted in zip(inside, exact, strict=True))
    even = Milestones(8, points)
    assert Milestones(8, points, placed=even.sampled).grid == even.grid


@pytest.mark.parametrize(
    "wrong", [(4, 1, 1000, (999, 500)), (2, 1, 1000, (1000, 500)), (2, 1, 1000, (400, 500)), (2, 5, 1000, (999, 3))]
)
def test_placed_milestones_that_do_not_fit_are_no_segments(wrong):
    with pytest.raises(ValueError, match="milestones below|leave no room"):
        Milestones(*wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [((0, 1), "0 steps"), ((4, 0), "0 teacher points"), ((50, 25), "1250 points"), ((2000, 1), "2000 points")],
)
def test_wrong_counts_are_refused(wrong, told):
    with pytest.raises(EvditError, match=told) as caught:
        Milestones(*wrong)
    assert caught.value.exit_code == 2 and caught.value.next_steps


def test_more_points_than_timesteps_name_what_fits():
    with pytest.raises(EvditError, match="the noise schedule has 1000 timesteps") as caught:
        Milestones(50, 25)
    assert caught.value.next_steps == ('--set "distill_mlcd.teacher_points=[20]"',)
    assert Milestones(50, 20).grid[-1] == 999


def test_points_go_from_coarse_to_fine():
    assert [points_at(i, 9, (2, 5, 25)) for i in range(9)] == [2, 2, 2, 5, 5, 5, 25, 25, 25]
    assert [points_at(i, 8, (2, 25), (3, 1)) for i in range(8)] == [2] * 6 + [25] * 2
    assert [points_at(i, 3, (7,)) for i in range(3)] == [7, 7, 7]


def test_clean_data_has_no_noise_and_other_times_are_the_table():
    schedule = NoiseSchedule.from_config({})
    a, s = signal_and_noise(schedule, torch.tensor([CLEAN, 0, 999]))
    assert a.flatten().tolist() == [1.0, schedule.alphas[0], schedule.alphas[999]]
    assert s.flatten().tolist() == [0.0, schedule.sigmas[0], schedule.sigmas[999]]
    assert a.shape == (3, 1, 1, 1, 1) and a.dtype == torch.float64
