"""The front of a search and what stands beside it, judged by all plans written out."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.closeness import assert_close
from tests.search.made import MASKS, table_of
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search import pareto as fronts
from vdit_cli.search.choose import by_threshold
from vdit_cli.search.choose_again import choose_again
from vdit_cli.search.mask_costs import MaskCosts, kept_shares
from vdit_cli.search.pareto import pareto, read_search, thinned
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Silent

LOSSES = [[0, 0.02, 0.06, 0.3], [0, 0.15, 0.1, 0.9], [0, 0.3, 0.35, 0.4]]
SECONDS = MaskCosts(MASKS, (1.0, 0.9, 0.45, 0.3), 0.0, "seconds")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished search with its table and plan."""
    (tmp_path / "measured").mkdir()
    table_of(LOSSES).write(tmp_path / "measured")
    options = SearchMasksOptions(sensitivity=str(tmp_path / "measured"), target_speedup=1.5)
    return choose_again(options, tmp_path / "run", Silent()).folder


def _all_plans(costs: MaskCosts) -> list[tuple[float, float]]:
    """(cost, loss) of the plans that no other beats, by looking at all of them; a mask's own cost, exactly added."""
    loss_LM = table_of(LOSSES).mean("attention")
    found = []
    for masks in product(range(len(MASKS)), repeat=len(LOSSES)):
        cost = sum(Fraction(costs.costs[mask]) for mask in masks)
        found.append((float(cost), float(sum(loss_LM[layer][mask] for layer, mask in enumerate(masks)))))
    return sorted(
        {point for point in found if not any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in found)}
    )


@pytest.mark.numerical
@pytest.mark.parametrize("costs", [kept_shares(MASKS), SECONDS], ids=["shares", "seconds"])
def test_the_front_is_that_of_all_plans(costs):
    found = pareto(table_of(LOSSES), "attention", costs)
    content = found.content()
    told = [(each["cost"], each["loss"]) for each in content["front"]]
    assert_close(np.array(told), np.array(_all_plans(costs)))
    assert (content["costs"], content["plans"], content["left_out"]) == (costs.unit, len(told), 0)
    loss_LM = table_of(LOSSES).mean("attention")
    told = [*content["front"], *content["uniform"], *content["r_sweep"]]
    layers = [each["layers"] for each in told]
    shares = [mask.kept_tiles / 64 for mask in MASKS]
    cost = np.array([sum(float(costs.costs[place]) for place in each) for each in layers])
    kept = np.array([sum(shares[place] for place in each) / 3 for each in layers])
    expected = {
        "loss": np.array([sum(loss_LM[layer][place] for layer, place in enumerate(each)) for each in layers]),
        "cost": cost,
        "attention_speedup": 3 * float(costs.costs[0]) / cost,
        "kept_share": kept,
        "skipped_share": 1 - kept,
    }
    assert_close({key: np.array([each[key] for each in told]) for key in expected}, expected)


@pytest.mark.numerical
def test_beside_each_plan_stands_the_least_loss_at_its_cost():
    found = pareto(table_of(LOSSES), "attention", SECONDS)
    every = _all_plans(SECONDS)
    told = found.content()["uniform"]
    least = [min(loss for cost, loss in every if cost <= each["cost"] + 1e-9) for each in told]
    assert_close(np.array([each["least_loss"] for each in told]), np.array(least))
    assert any(each["least_loss"] < each["loss"] for each in told)
    assert found.least_loss(0.8) is None


def test_the_sweep_is_every_plan_of_a_threshold():
    """Just at its r and not below it; a thousand other r give no further one."""
    found = pareto(table_of(LOSSES), "attention", kept_shares(MASKS))
    loss_LM = table_of(LOSSES).mean("attention")
    assert [each.r for each in found.sweep] == sorted({each.r for each in found.sweep})
    assert found.sweep[0].r == 0 and all(mask.is_dense for mask in found.sweep[0].choice.masks)
    assert {mask.name for mask in found.sweep[-1].choice.masks} == {"1:7"}
    for before, each in zip(found.sweep, found.sweep[1:], strict=False):
        assert by_threshold(loss_LM, MASKS, each.r) == each.choice.masks
        assert by_threshold(loss_LM, MASKS, np.nextafter(each.r, 0)) == before.choice.masks
    given = {by_threshold(loss_LM, MASKS, r) for r in np.linspace(0, 2, 1000).tolist()}
    assert given <= {each.choice.masks for each in found.sweep}


def test_a_sweep_of_masks_that_change_nothing_begins_dense():
    """At r = 0 no loss lies below r, above it the sparsest of those without loss."""
    found = pareto(table_of([[0, 0, 0, 0.5]]), "attention", kept_shares(MASKS))
    assert [each.choice.masks[0].name for each in found.sweep] == ["8:0", "2:6", "1:7"]
    assert [each.r > 0 for each in found.sweep] == [False, True, True]


def test_a_long_front_is_thinned_and_says_how_much(monkeypatch):
    monkeypatch.setattr(fronts, "MOST_TOLD", 4)
    found = pareto(table_of(LOSSES), "attention", SECONDS)
    content = found.content()
    assert len(found.front) > 4 == len(content["front"])
    assert content["plans"] == len(found.front) == content["left_out"] + 4
    assert [content["front"][0]["cost"], content["front"][-1]["cost"]] == [found.front.costs[0], found.front.costs[-1]]


def test_places_are_thinned_evenly():
    assert thinned(3, 5) == [0, 1, 2]
    assert thinned(101, 5) == [0, 25, 50, 75, 100]
    assert len(set(thinned(21, 20))) == 20


@pytest.mark.numerical
def test_the_score_decides():
    """`relative` is half of `attention` in this table; `output` was not measured."""
    table = table_of(LOSSES)
    one, other = (pareto(table, by, kept_shares(MASKS)) for by in ("attention", "relative"))
    assert_close(one.front.losses, 2 * other.front.losses)
    with pytest.raises(EvditError, match="output' was not measured"):
        pareto(table, "output", kept_shares(MASKS))


def test_a_run_brings_its_plan(run: Path):
    table, plan = read_search(run)
    found = pareto(table, "attention", kept_shares(table.masks), plan)
    assert plan == MaskPlan.read(run) and found.chosen is not None and found.chosen.masks == plan.masks
    assert found.chosen.loss == found.least_loss(found.chosen.cost)  # a budget's plan is on the front
    assert found.content()["chosen"]["loss"] == plan.predicted["loss"]


def test_a_table_alone_has_no_chosen_plan(run: Path):
    table, plan = read_search(run / "sensitivity.json")
    assert plan is None and pareto(table, "attention", kept_shares(table.masks)).content()["chosen"] is None


def test_a_plan_of_another_table_is_refused(run: Path):
    plan = MaskPlan.read(run)
    replace(plan, made_by={**plan.made_by, "sensitivity": "cd" * 32}).write(run)
    with pytest.raises(EvditError, match="was not chosen from the table beside it") as caught:
        read_search(run)
    assert (caught.value.exit_code, caught.value.where) == (USAGE, str(run / "plan.json"))


def test_a_plan_with_a_mask_that_was_not_measured_is_refused(run: Path):
    """As after an edit, sealed again."""
    plan = MaskPlan.read(run)
    replace(plan, masks=(*plan.masks[:2], TileMask.parse("3:5", 8))).write(run)
    table, edited = read_search(run)
    with pytest.raises(EvditError, match="3:5 was no candidate") as caught:
        pareto(table, "attention", kept_shares(table.masks), edited)
    assert caught.value.where == f"{run / 'plan.json'} layer 2"
