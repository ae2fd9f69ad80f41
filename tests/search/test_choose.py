"""Choosing masks: planted sensitivities come back, thresholds are monotone, and no plan beats the budget's."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.closeness import assert_close
from tests.search.made import MASKS, table_of
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.search.candidates import in_order, usual_masks
from vdit_cli.search.choose import (
    Target,
    by_budget,
    by_threshold,
    judged,
    parse_fixed,
    plan_front,
    shuffled,
    uniform,
    with_fixed,
)
from vdit_cli.search.knapsack import Within, pareto_front
from vdit_cli.search.mask_costs import MaskCosts, kept_shares, largest_chains
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

DENSE, HALF, QUARTER, SPARSE = MASKS
SHARES = kept_shares(MASKS)
LOSSES = np.array([[0, 0.01, 0.05, 0.2], [0, 0.5, 0.2, 0.3], [0, 0.1, 0.1, 0.1]])
RANDOM = np.random.default_rng(3).exponential(size=(5, 4)) * [0, 0.2, 0.5, 1]


@st.composite
def losses(draw: st.DrawFn) -> np.ndarray:
    """Losses of up to five layers, in no order but for the full mask's 0."""
    rows = st.lists(st.floats(0, 10) | st.integers(0, 3).map(float), min_size=3, max_size=3)
    return np.array([[0.0, *row] for row in draw(st.lists(rows, min_size=1, max_size=5))])


def test_the_threshold_takes_the_sparsest_mask_below_r():
    """Below and not at it; a sparser mask that loses less than a denser one is taken."""
    assert by_threshold(LOSSES, MASKS, 0.1) == (QUARTER, DENSE, DENSE)
    assert by_threshold(LOSSES, MASKS, 0.25) == (SPARSE, QUARTER, SPARSE)
    assert by_threshold(LOSSES, MASKS, 0.01) == (DENSE, DENSE, DENSE)
    assert by_threshold(LOSSES, MASKS, 0.0100001) == (HALF, DENSE, DENSE)


@given(losses(), st.floats(0, 20), st.floats(0, 20))
def test_the_threshold_is_monotone(loss_LM: np.ndarray, r: float, other: float):
    """A larger r never keeps more of a layer; 0 is full attention and 1e9 the sparsest mask everywhere."""
    lower, higher = (by_threshold(loss_LM, MASKS, each) for each in sorted((r, other)))
    assert all(a.kept_tiles >= b.kept_tiles for a, b in zip(lower, higher, strict=True))
    assert by_threshold(loss_LM, MASKS, 0) == uniform(DENSE, len(loss_LM))
    assert by_threshold(loss_LM, MASKS, 1e9) == uniform(SPARSE, len(loss_LM))


@pytest.mark.parametrize("r", [-0.1, math.nan, math.inf, -math.inf])
def test_what_is_no_threshold_is_refused(r: float):
    """Negative, NaN, infinite."""
    with pytest.raises(EvditError, match="finite and at least 0") as caught:
        by_threshold(LOSSES, MASKS, r)
    assert (caught.value.where, caught.value.exit_code) == ("--r", USAGE)


def test_planted_sensitivities_are_recovered():
    """A table whose layers stand each mask up to one that is planted gives that plan, by r and by its cost."""
    planted = (SPARSE, DENSE, HALF, QUARTER, SPARSE, HALF)
    loss_LM = np.array([[0, *(0.01 if MASKS.index(own) >= i else 5 for i in (1, 2, 3))] for own in planted])
    found = table_of(loss_LM, noise=0.2).mean("attention")
    assert by_threshold(found, MASKS, 0.1) == planted
    assert by_budget(found, SHARES, Target("cost", SHARES.of_plan(planted))).masks == planted


@pytest.mark.numerical
def test_a_budget_is_met_by_the_plan_of_least_loss():
    """Against all 1,024 plans: within a cost, within a loss, at a speed-up."""
    plans = [judged(plan, RANDOM, SHARES) for plan in itertools.product(MASKS, repeat=5)]
    for limit in (2.0, 2.7, 3.5, 5.0):
        best = min((plan for plan in plans if plan.cost <= limit), key=lambda plan: (plan.loss, plan.cost))
        for target in (Target("cost", limit), Target("speedup", 5 / limit)):
            found = by_budget(RANDOM, SHARES, target)
            assert found.met and found.cost <= limit
            assert_close((found.loss + 1, found.cost, found.speedup), (best.loss + 1, best.cost, 5 / best.cost))
    for limit in (0.2, 0.5, 1.0):
        cheapest = min(plan.cost for plan in plans if plan.loss <= limit)
        found = by_budget(RANDOM, SHARES, Target("loss", limit))
        assert found.met and found.loss <= limit
        assert_close(found.cost, cheapest)


@given(losses(), st.lists(st.floats(0.1, 10), min_size=4, max_size=4), st.floats(0, 20))
def test_the_front_is_never_beaten(loss_LM: np.ndarray, seconds: list[float], r: float):
    """Not by a uniform mask, nor by a threshold's plan, at the same cost or the same loss."""
    costs = MaskCosts(MASKS, tuple(seconds), unit="seconds")
    front = plan_front(loss_LM, costs)
    plans = [uniform(mask, len(loss_LM)) for mask in MASKS] + [by_threshold(loss_LM, MASKS, r)]
    for plan in (judged(each, loss_LM, costs) for each in plans):
        assert by_budget(loss_LM, costs, Target("cost", plan.cost), front=front).loss <= plan.loss
        assert by_budget(loss_LM, costs, Target("loss", plan.loss), front=front).cost <= plan.cost


@pytest.mark.parametrize(
    ("target", "fixed", "masks"),
    [
        (Target("speedup", 10), {}, (SPARSE, SPARSE, SPARSE)),
        (Target("cost", 0.5), {1: DENSE}, (SPARSE, DENSE, SPARSE)),
        (Target("loss", 0.1), {1: HALF}, (DENSE, HALF, DENSE)),
    ],
)
def test_a_target_out_of_reach_gives_the_best_that_can_be(target: Target, fixed: dict, masks: tuple):
    """And says so; a fixed layer may be why."""
    found = by_budget(LOSSES, SHARES, target, fixed)
    assert (found.masks, found.met) == (masks, False)
    assert found == judged(masks, LOSSES, SHARES, met=False)


def test_equal_losses_go_to_the_sparser_mask():
    """Layer 2 loses the same under all masks but the full one: it has that or 1:7, whatever the target."""
    assert by_budget(LOSSES[2:], SHARES, Target("cost", 0.9)).masks == (SPARSE,)
    assert by_budget(LOSSES[2:], SHARES, Target("loss", 0)).masks == (DENSE,)


@pytest.mark.parametrize("kind", ["loss", "cost", "speedup"])
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 0])
def test_what_is_no_target_is_refused(kind, value: float):
    """A loss of 0 is one: full attention."""
    if kind == "loss" and value == 0:
        assert by_budget(LOSSES, SHARES, Target("loss", 0)).masks == uniform(DENSE, 3)
        return
    with pytest.raises(EvditError, match="is no number to choose by") as caught:
        Target(kind, value)
    assert caught.value.where in ("--max-loss", "--latency", "--target-speedup")


def test_layers_are_fixed_on_top():
    """By name or as dense, spaces allowed; the threshold's other layers stay, the budget spends on the others."""
    fixed = parse_fixed("0=dense, 2 = 4:4,", 3, MASKS)
    assert fixed == {0: DENSE, 2: HALF} and parse_fixed("", 3, MASKS) == {}
    assert with_fixed(by_threshold(LOSSES, MASKS, 0.25), fixed) == (DENSE, QUARTER, HALF)
    found = by_budget(LOSSES, SHARES, Target("loss", 0.3), fixed)
    assert found.masks == (DENSE, QUARTER, HALF) and found.met


@pytest.mark.parametrize(
    ("text", "rule", "step"),
    [
        ("dense", "'dense' fixes no layer: it is LAYER=MASK", "--fix 0=dense,1=1:7"),
        (",", "',' fixes no layer: it is LAYER=MASK", "--fix 0=dense,1=1:7"),
        ("-1=dense", "fixes no layer", "--fix 0=dense,1=1:7"),
        ("3=dense", "there is no layer 3: layers are 0 to 2", None),
        ("0=dense,0=4:4", "layer 0 is fixed twice", None),
        ("0=3:5", "'3:5' is no candidate: layers choose among 1:7, 2:6, 4:4, 8:0, dense", "--fix 0=4:4"),
    ],
)
def test_what_fixes_no_layer_is_refused(text: str, rule: str, step: str | None):
    """What may be is in the error."""
    with pytest.raises(EvditError, match=rule) as caught:
        parse_fixed(text, 3, MASKS)
    assert caught.value.where.startswith("--fix") and (step is None or step in caught.value.next_steps)


def test_a_shuffled_plan_has_the_same_masks():
    """In another order, the same for the same seed."""
    plan = (DENSE, HALF, *uniform(QUARTER, 3), *uniform(SPARSE, 5))
    drawn = [shuffled(plan, seed) for seed in range(5)]
    assert len(set(drawn)) == 5 and shuffled(plan, 3) == drawn[3]
    assert all(sorted(each, key=MASKS.index) == list(plan) for each in drawn)


THREE = TileMask.from_stride(8, 3)
SIX = in_order([*MASKS, THREE, TileMask.from_stride(8, 6)], 8)
"""{0, 3, 6} and {0, 6} nest, and neither fits with {0, 4} or {0, 2, 4, 6}, but {0, 6} does with the latter."""


def test_nests_are_found():
    """All that no further mask fits into."""
    found = {tuple(mask.global_frames for mask in chain) for chain in largest_chains(SIX)}
    evens = (0, 2, 4, 6)
    assert found == {((0,), (0, 4), evens), ((0,), (0, 6), evens), ((0,), (0, 6), (0, 3, 6))}
    assert list(largest_chains((DENSE,))) == [()]


@pytest.mark.numerical
@pytest.mark.parametrize("gather", [0.01, 0.1, 0.4])
def test_masks_outside_the_nest_pay_for_gathering(gather: float):
    """A plan costs what its own order of frames lets it cost, and the front of all 1,296 plans is exact."""
    seconds = (1.0, 0.83, 0.7, 0.53, 0.52, 0.35)
    costs = MaskCosts(SIX, seconds, gather, "seconds")
    loss_LM = np.random.default_rng(1).exponential(size=(4, 6)) * [0, 0.2, 0.3, 0.5, 0.5, 1]
    assert [mask.name for mask in SIX] == ["8:0", "4:4", "3:5", "2:6", "2:6", "1:7"]

    def cost_of(plan: tuple[TileMask, ...]) -> float:
        """By the order that MaskPlan has: a mask gathers where its global frames are not the first."""
        order = MaskPlan("", VideoGrid(8, 1, 1), plan).frame_order
        outside = [m for m in plan if not m.is_dense and set(order[: len(m.global_frames)]) != set(m.global_frames)]
        return sum(seconds[SIX.index(mask)] for mask in plan) + gather * len(outside)

    plans = [(cost_of(plan), judged(plan, loss_LM, costs)) for plan in itertools.product(SIX, repeat=4)]
    assert_close([each.cost for _, each in plans], [cost for cost, _ in plans])
    best = []
    for cost, plan in sorted(plans, key=lambda pair: (round(pair[0], 9), pair[1].loss)):
        if not best or plan.loss < best[-1][1]:
            best.append((cost, plan.loss))
    front = plan_front(loss_LM, costs)
    assert_close(list(zip(front.costs, front.losses + 1, strict=True)), [(cost, loss + 1) for cost, loss in best])
    for point in range(len(front)):
        assert_close(cost_of(front.masks(point)), front.costs[point])


def test_candidates_stand_from_the_full_mask_to_the_sparsest():
    """Once each; another mask that keeps all tiles is the full one."""
    assert in_order([SPARSE, HALF, SPARSE, TileMask(8, tuple(range(1, 8)))], 8) == (DENSE, HALF, SPARSE)
    assert [mask.name for mask in usual_masks(8)] == ["8:0", "4:4", "2:6", "1:7"]
    assert [mask.name for mask in usual_masks(24)] == [
        *("24:0", "12:12", "8:16", "6:18", "4:20", "3:21", "2:22", "2:22", "1:23")
    ]
    assert [mask.name for mask in usual_masks(1)] == ["1:0"]
    with pytest.raises(ValueError, match="9 frames does not go with those of 8"):
        in_order([TileMask.dense(9)], 8)


def test_shares_are_exact_costs():
    """Of tiles, as fractions, so that their sums are equal where they should be."""
    assert SHARES.costs == (1, Fraction(52, 64), Fraction(34, 64), Fraction(22, 64))
    assert SHARES.of_plan((DENSE, SPARSE)) == 86 / 64 and SHARES.speedup((DENSE, SPARSE)) == 128 / 86


PAPER = {
    0.025: ((3, 21, 7, 1), 23.51, 43.50),
    0.05: ((2, 11, 11, 8), 37.78, 35.58),
    0.1: ((2, 6, 11, 13), 45.08, 31.54),
    0.2: ((2, 4, 5, 21), 51.55, 27.91),
    0.4: ((2, 2, 4, 24), 55.07, 25.96),
}
"""By r: how many of 32 layers have the full mask, 4:4, 2:6 and 1:7 (derived), and Table 2's sparsity and kernel ms."""


@pytest.mark.numerical
@pytest.mark.parametrize("r", PAPER)
def test_the_papers_histograms_give_the_papers_means(r: float):
    """Of Table 1 of arXiv 2502.06155: mean sparsity of 128-blocks at 3600 tokens a frame, mean milliseconds."""
    layers, sparsity, ms = PAPER[r]
    plan = tuple(mask for mask, count in zip(MASKS, layers, strict=True) for _ in range(count))
    assert len(plan) == 32
    grid = VideoGrid(8, 45, 80)
    skipped = sum(round(100 * (1 - mask.kept_block_share(grid)), 2) for mask in plan) / 32
    costs = MaskCosts(MASKS, (58.36, 46.52, 31.35, 20.65), unit="ms")
    assert_close((skipped, costs.of_plan(plan) / 32), (sparsity, ms), atol=0.006)


@given(
    losses(),
    st.lists(st.floats(0.1, 10) | st.just(5e-324), min_size=4, max_size=4),
    st.floats(0, 1),
    st.sets(st.integers(0, 4)),
)
def test_a_target_alone_is_met_as_on_the_whole_front(loss_LM: np.ndarray, seconds: list[float], share: float, fix: set):
    """What is left out of the front because it can't be the best is not: the same masks, to the last."""
    costs = MaskCosts(MASKS, (1.0, *seconds[1:]), unit="seconds")
    fixed = {layer: QUARTER for layer in fix if layer < len(loss_LM)}
    front = plan_front(loss_LM, costs, fixed)
    for kind, sums in (("cost", front.costs), ("loss", front.losses)):
        for value in (sums.min() + share * (sums.max() - sums.min()), sums[len(sums) // 2], sums.min() * share):
            if kind == "cost" and value == 0:
                continue
            target = Target(kind, float(value))
            assert by_budget(loss_LM, costs, target, fixed) == by_budget(loss_LM, costs, target, front=front)


@pytest.mark.parametrize("of", ["cost", "loss"])
def test_a_target_alone_keeps_few_points(of):
    """The same point of a large front, found among a quarter of its points."""
    drawn = np.random.default_rng(0)
    share = np.sort(drawn.uniform(0.1, 1, 8))[::-1]
    losses_LM = drawn.exponential(size=(32, 1)) * (1 - share) ** 2 * drawn.uniform(0.5, 1.5, (32, 8))
    costs_LM = [share.tolist()] * 32
    whole = pareto_front(costs_LM, losses_LM)
    place = len(whole) // 3
    limit = float((whole.costs if of == "cost" else whole.losses)[place])
    part = pareto_front(costs_LM, losses_LM, within=Within(of, limit))
    sums = list(zip(part.costs, part.losses, strict=True))
    at = sums.index((whole.costs[place], whole.losses[place]))
    assert part.chosen(at) == whole.chosen(place)
    assert max(len(parents) for parents, _ in part.steps) < len(whole) / 4
