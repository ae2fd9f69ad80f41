"""The knapsack against brute force, and what holds of every front."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.closeness import assert_close
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.search.knapsack import pareto_front, whole_numbers


def brute_force(costs_LM: np.ndarray, losses_LM: np.ndarray) -> tuple[list[float], list[float]]:
    """The front by looking at every choice: sums rounded once, sorted by cost, then each that loses less."""
    layers, masks = np.shape(losses_LM)
    sums = []
    for choice in itertools.product(range(masks), repeat=layers):
        sums.append(tuple(math.fsum(table[range(layers), choice]) for table in (costs_LM, losses_LM)))
    front: list[tuple[float, ...]] = []
    for cost, loss in sorted(sums):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return [cost for cost, _ in front], [loss for _, loss in front]


@pytest.mark.numerical
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("is_shared", [False, True])
def test_the_front_is_that_of_brute_force(seed: int, is_shared: bool):
    """All 3,125 choices of 5 layers of 5 masks with random real costs, to 1e-12; each point's masks give its sums."""
    drawn = np.random.default_rng(seed)
    costs_LM = np.tile(drawn.random(5), (5, 1)) if is_shared else drawn.random((5, 5))
    losses_LM = drawn.exponential(size=(5, 5))
    front = pareto_front(costs_LM, losses_LM)
    assert len(front) > 5
    costs, losses = brute_force(costs_LM, losses_LM)
    assert_close((list(front.costs), list(front.losses)), (costs, losses), atol=1e-12)
    for point in range(len(front)):
        choice = front.chosen(point)
        assert_close(sum(costs_LM[range(5), choice]), front.costs[point], atol=1e-12)
        assert_close(sum(losses_LM[range(5), choice]), front.losses[point], atol=1e-12)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[float]], list[list[float]]]:
    """Costs and losses of up to four layers and masks, many of them equal."""
    layers, masks = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    number = st.integers(0, 4).map(float) | st.floats(0, 1e3)
    table = st.lists(st.lists(number, min_size=masks, max_size=masks), min_size=layers, max_size=layers)
    return draw(table), draw(table)


@given(tables())
def test_no_choice_beats_the_front(table: tuple[list[list[float]], list[list[float]]]):
    """Costs go up and losses down, and every choice is met by a point that costs and loses no more, to the bit."""
    costs_LM, losses_LM = table
    front = pareto_front(costs_LM, losses_LM)
    assert (np.diff(front.losses) < 0).all() and (np.diff(front.costs) >= 0).all()
    layers, masks = len(costs_LM), len(costs_LM[0])
    for choice in itertools.product(range(masks), repeat=layers):
        cost = float(sum(Fraction(costs_LM[layer][mask]) for layer, mask in enumerate(choice)))
        loss = 0.0
        for layer, mask in enumerate(choice):
            loss += losses_LM[layer][mask]
        assert ((front.costs <= cost) & (front.losses <= loss)).any()


def test_sums_of_one_histogram_are_one_cost():
    """0.1 + 0.2 + 0.3 has two values in float64: here it has one, so the front holds no twins."""
    costs = [0.1, 0.2, 0.3]
    assert (0.1 + 0.2) + 0.3 != 0.1 + (0.2 + 0.3)
    losses_LM = [[3, 2, 1]] * 3
    front = pareto_front([costs] * 3, losses_LM)
    assert list(front.losses) == [9, 8, 7, 6, 5, 4, 3]
    assert len(front) == 7, "one point a sum of the places"


def test_costs_too_far_apart_for_64_bits_are_exact_too():
    """Python's own whole numbers then carry them."""
    small, large = 2.0**-80, 1.0
    whole, units = whole_numbers([[small, large]])
    assert whole.dtype == object and whole[0].tolist() == [1, 2**80] and units == 2**80
    front = pareto_front([[large, small]] * 2, [[0, 1]] * 2)
    assert list(front.losses) == [2, 1, 0] and [front.chosen(point) for point in (0, 2)] == [(1, 1), (0, 0)]
    usual, _ = whole_numbers([[0.25, Fraction(1, 3)]])
    assert usual.dtype == np.int64 and usual.tolist() == [[3, 4]]


def test_equal_points_are_settled_by_the_later_mask():
    """The same cost and loss twice: the sparser mask stands later in a table; and always the same one."""
    front = pareto_front([[1, 1], [2, 1]], [[0, 0], [0, 5]])
    assert [front.chosen(point) for point in range(len(front))] == [(1, 1), (1, 0)]


def test_layers_take_only_what_they_may():
    """A fixed layer has one mask, and the front is that of the others."""
    costs, losses = [[3, 2, 1]] * 2, [[0, 1, 5]] * 2
    front = pareto_front(costs, losses, [[0], [0, 1, 2]])
    assert [front.chosen(point) for point in range(len(front))] == [(0, 2), (0, 1), (0, 0)]
    assert list(front.costs) == [4, 5, 6]


def test_a_front_that_grows_too_large_is_an_error():
    """It is never thinned: 2 ** 12 points of 12 layers that trade cost for loss one for one."""
    costs = [[2.0**layer, 0] for layer in range(12)]
    losses = [[0, 2.0**layer] for layer in range(12)]
    assert len(pareto_front(costs, losses)) == 2**12
    with pytest.raises(EvditError, match="after 11 of 12 layers 2048 choices") as caught:
        pareto_front(costs, losses, most_points=2000)
    assert caught.value.exit_code == FAILED and caught.value.next_steps


def test_a_large_table_has_a_small_front():
    """42 layers of 8 masks whose costs are the same in each layer: a few thousand points, not C(49, 7) = 85,900,584."""
    drawn = np.random.default_rng(0)
    share = np.sort(drawn.uniform(0.1, 1, 8))[::-1]
    losses_LM = drawn.exponential(size=(42, 1)) * (1 - share) ** 2 * drawn.uniform(0.5, 1.5, (42, 8))
    front = pareto_front([share.tolist()] * 42, losses_LM)
    assert 42 < len(front) < 20_000
    assert len(front.chosen(0)) == 42


@pytest.mark.parametrize("cost", [-1, math.nan, math.inf])
def test_what_is_no_cost_is_refused(cost: float):
    """A mistake in a program."""
    with pytest.raises(ValueError, match="is no cost"):
        pareto_front([[cost]], [[0]])
