"""docs/mask_plans.py on a table made up here: every plan is what its name says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.search.made import MASKS, table_of
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.errors import EvditError
from vdit_cli.search.choose import judged
from vdit_cli.search.mask_costs import kept_shares
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.tiles.plan import MaskPlan

ROOT = Path(__file__).resolve().parents[2]
LOSSES = np.random.default_rng(1).uniform(0.5, 2, (8, 1)) * [0, 0.01, 0.05, 0.1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import mask_plans

    return mask_plans


@pytest.fixture
def made(script: ModuleType, tmp_path: Path) -> tuple[SensitivityTable, dict[str, MaskPlan]]:
    """A table and its plans by name, as the script writes them."""
    run = tmp_path / "run"
    run.mkdir()
    table = table_of(LOSSES)
    table.write(run / "sensitivity.json")
    script.main([str(run), str(tmp_path / "plans")])
    return table, {path.stem: MaskPlan.read(path) for path in (tmp_path / "plans").glob("*.json")}


def test_uniform_plans_hold_one_mask(made: tuple[SensitivityTable, dict[str, MaskPlan]]) -> None:
    """All layers have the mask of the name."""
    _, plans = made
    for name, mask in zip(("dense", "uniform-4:4", "uniform-2:6", "uniform-1:7"), MASKS, strict=True):
        assert plans[name].masks == (mask,) * 8


def test_five_thresholds_span_the_shares(made: tuple[SensitivityTable, dict[str, MaskPlan]]) -> None:
    """Each keeps less than the one before, none is dense or the sparsest, and its r gives it again."""
    table, plans = made
    shares = [mean_kept_share(plans[f"r-{k}"].masks) for k in range(1, 6)]
    assert shares == sorted(set(shares), reverse=True)
    assert shares[0] < 1 and shares[-1] > MASKS[-1].kept_share
    loss_LM = table.mean("attention")
    for k in range(1, 6):
        r = plans[f"r-{k}"].made_by["r"]
        sparsest = [max(place for place, loss in enumerate(loss_M) if loss < r) for loss_M in loss_LM]
        assert plans[f"r-{k}"].masks == tuple(MASKS[place] for place in sparsest)


def test_random_assignments_keep_the_histogram(made: tuple[SensitivityTable, dict[str, MaskPlan]]) -> None:
    """The same masks as often, and not all five in the same layers."""
    _, plans = made
    for k in range(1, 6):
        others = [plans[f"random-{k}-{seed}"].masks for seed in range(5)]
        assert all(Counter(masks) == Counter(plans[f"r-{k}"].masks) for masks in others)
        assert len(set(others)) > 1


def test_budgets_cost_no_more_and_lose_no_more(made: tuple[SensitivityTable, dict[str, MaskPlan]]) -> None:
    """Beside the r or the uniform mask whose cost is the limit."""
    table, plans = made
    costs = kept_shares(table.masks)

    def lost(plan: MaskPlan) -> float:
        return judged(plan.masks, table.mean("attention"), costs).loss

    beside = {"4:4": "uniform-4:4", "2:6": "uniform-2:6", **{str(k): f"r-{k}" for k in range(1, 6)}}
    for at, other in beside.items():
        for by in ("attention", "relative"):
            plan = plans[f"budget-{by}-{at}"]
            assert costs.of_plan(plan.masks) <= costs.of_plan(plans[other].masks)
            assert lost(plan) <= lost(plans[other])


def test_drawn_plans_differ_and_keep_the_share(made: tuple[SensitivityTable, dict[str, MaskPlan]]) -> None:
    """Thirty of each, no two alike."""
    _, plans = made
    for share in (0.53, 0.44):
        drawn = [plans[f"drawn-{share * 100:.0f}-{place}"].masks for place in range(30)]
        assert len(set(drawn)) == 30
        assert all(share - 0.015 <= mean_kept_share(masks) <= share + 0.015 for masks in drawn)


def test_plans_name_table_and_weights(made: tuple[SensitivityTable, dict[str, MaskPlan]]) -> None:
    """As a plan of a search does."""
    table, plans = made
    assert {plan.made_by["sensitivity"] for plan in plans.values()} == {table.digest}
    assert {plan.searched_on for plan in plans.values()} == {table.weights}


def test_too_few_plans_are_told(script: ModuleType) -> None:
    """A share that one plan alone has."""
    with pytest.raises(EvditError, match="1 plans, not 30, of 2 layers"):
        script.drawn(kept_shares(MASKS), 2, 1.0, 30)


def test_words_that_do_not_fit(script: ModuleType, tmp_path: Path) -> None:
    """One word, a folder that is not there, a table of nothing."""
    with pytest.raises(EvditError, match="1 words were given"):
        script.main(["a"])
    with pytest.raises(EvditError, match="is no folder"):
        script.main([str(tmp_path / "none"), "b"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dense.json").write_text("mine", encoding="utf-8")
    table_of(LOSSES).write(tmp_path)
    with pytest.raises(EvditError, match="holds files already"):
        script.main([str(tmp_path), str(tmp_path / "out")])
    assert (tmp_path / "out" / "dense.json").read_text(encoding="utf-8") == "mine"
    write_json(tmp_path / "sensitivity.json", {})
    with pytest.raises(EvditError):
        script.main([str(tmp_path), "b"])
