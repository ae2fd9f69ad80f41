"""The rule that the options ask for, the plan it makes of a table, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.closeness import assert_close
from tests.search.made import MASKS, table_of
from vdit_cli.errors import EvditError
from vdit_cli.recipe import SearchMasksOptions, load
from vdit_cli.search.mask_costs import kept_shares
from vdit_cli.search.plan_choice import Searched, choose, read_rule
from vdit_cli.search.plan_costs import PlanCosts
from vdit_cli.tiles.mask import TileMask

LOSSES = [[0, 0.02, 0.06, 0.3], [0, 0.15, 0.3, 0.9], [0, 0.01, 0.02, 0.04]]
FOLDER = Path("run")


def chosen(noise: float = 0.0, prompts: int = 2, **options: object) -> Searched:
    """The choice from a table of three layers."""
    return choose(table_of(LOSSES, prompts, noise=noise), SearchMasksOptions(**options), FOLDER)


def names(found: Searched) -> list[str]:
    return [mask.name for mask in found.plan.masks]


@pytest.mark.numerical
def test_a_choice_by_r():
    """Below .1: the sparsest of each layer; at .05 the first layer changes, at .2 the second; costs are kept shares."""
    found = chosen()
    assert names(found) == ["2:6", "8:0", "1:7"] and found.changes == {"half": 1, "twice": 1}
    kept = (34 / 64 + 1 + 22 / 64) / 3
    assert_close([found.plan.predicted["kept_share"], found.choice.speedup], [kept, 1 / kept], rtol=1e-12)
    assert_close(found.choice.loss, 0.06 + 0 + 0.04, rtol=1e-12)
    assert found.plan.predicted["score"] == "attention"
    assert names(chosen(by="relative")) == ["2:6", "4:4", "1:7"]


def test_rules_that_stand_in_for_r():
    """A sum of losses, a speed-up, a mask for all; each says what it was in the plan."""
    assert names(chosen(max_loss=0.065)) == ["4:4", "8:0", "1:7"]
    fast = chosen(target_speedup=1.6)
    assert fast.choice.speedup >= 1.6 and fast.choice.met and fast.plan.made_by["target_speedup"] == 1.6
    most = chosen(target_speedup=50.0)
    assert names(most) == ["1:7"] * 3 and not most.choice.met and "nearest" in most.sentences()[1]
    same = chosen(uniform="2:6")
    assert names(same) == ["2:6"] * 3 and same.plan.made_by["uniform"] == "2:6" and not same.changes


def test_a_flag_goes_before_the_rule_of_a_recipe_file(tmp_path: Path):
    """Whatever either is; two of one kind are refused, with each of them to paste."""
    file = tmp_path / "recipe.yaml"
    file.write_text("search_masks:\n  r: 0.1\n", encoding="utf-8")

    def told(flags: dict[str, object], sets: tuple[str, ...] = ()) -> dict[str, object]:
        given = {f"search_masks.{name}": value for name, value in flags.items()}
        options = load(file, sets, given).search_masks
        found = choose(table_of(LOSSES), options, FOLDER).plan.made_by
        return {name: found[name] for name in ("r", "target_speedup", "max_loss", "uniform") if name in found}

    assert told({}) == {"r": 0.1}
    assert told({"target_speedup": 1.6}) == {"target_speedup": 1.6}
    assert told({"uniform": "2:6"}) == {"uniform": "2:6"}
    file.write_text("search_masks:\n  max_loss: 0.2\n", encoding="utf-8")
    assert told({}) == {"max_loss": 0.2}
    assert told({"r": 0.05}) == {"r": 0.05}
    assert told({}, ("search_masks.uniform=2:6",)) == {"uniform": "2:6"}
    with pytest.raises(EvditError, match="--r and --uniform are 2 rules") as caught:
        told({"r": 0.05, "uniform": "2:6"})
    assert caught.value.next_steps == ("--r 0.05", "--uniform 2:6")
    file.write_text("search_masks:\n  r: 0.1\n  max_loss: 0.2\n", encoding="utf-8")
    with pytest.raises(EvditError, match="--r and --max-loss are 2 rules"):
        told({})


def test_masks_of_one_name_are_told_once():
    """Of 24 frames strides 12 and 16 are both 2:22: all their layers together, and once among what may be chosen."""
    twelve, sixteen = TileMask.from_stride(24, 12), TileMask.from_stride(24, 16)
    masks = (TileMask.dense(24), twelve, sixteen)
    table = table_of([[0, 0.01, 5], [0, 5, 0.01], [0, 5, 5]], masks=masks)
    found = choose(table, SearchMasksOptions(), FOLDER)
    assert found.plan.masks == (twelve, sixteen, masks[0])
    assert found.sentences()[0].startswith("24:0 in 1 layer, 2:22 in 2 layers: kept")
    with pytest.raises(EvditError, match="these are 24:0, 2:22$") as caught:
        choose(table, SearchMasksOptions(uniform="3:21"), FOLDER)
    assert caught.value.next_steps == ("--uniform 24:0", "--uniform 2:22")


def test_fixed_layers_keep_their_mask_under_every_rule():
    """And do not count among those that change with r."""
    assert names(chosen(fix="0=dense,1=1:7")) == ["8:0", "1:7", "1:7"]
    assert chosen(fix="0=dense,1=1:7").changes == {"half": 0, "twice": 0}
    assert names(chosen(fix="2=4:4", uniform="1:7")) == ["1:7", "1:7", "4:4"]
    assert names(chosen(fix="1=dense", target_speedup=1.5))[1] == "8:0"
    assert chosen(fix="1=dense").plan.made_by["fix"] == "1=dense"


def test_coin_flips_are_listed_and_one_prompt_tells_nothing():
    """Losses that hardly differ between prompts are steady; a layer whose loss lies at r is not."""
    assert chosen().steady is not None and chosen().steady.coin_flips == ()
    close = chosen(noise=0.5, prompts=5, r=0.06)
    assert 0 in close.steady.coin_flips
    line = next(line for line in close.sentences() if "coin-flips" in line)
    assert "0" in line and "0.8 of 1000 resamples of 5 prompts" in line
    assert close.content()["coin_flips"] == list(close.steady.coin_flips) and len(close.content()["again"]) == 3
    alone = chosen(prompts=1)
    assert alone.steady is None and "--num-prompts" in alone.sentences()[-1] and alone.content()["again"] is None


def test_full_attention_by_its_name():
    """As --fix takes it."""
    assert {mask.name for mask in chosen(uniform="dense").plan.masks} == {"8:0"}


def test_a_uniform_mask_that_is_none_is_told_those_that_are():
    """Of the table, which a choice from it can't add to."""
    with pytest.raises(EvditError) as caught:
        chosen(uniform="3:5")
    assert caught.value.next_steps == tuple(f"--uniform {name}" for name in ("8:0", "4:4", "2:6", "1:7"))


def test_the_first_line_tells_masks_and_shares():
    line = chosen().sentences()[0]
    assert line.startswith("8:0 in 1 layer, 2:6 in 1 layer, 1:7 in 1 layer: kept 0.62 and skipped 0.38 of the tiles")
    assert chosen().sentences()[1] == "another mask in 1 layer at half r and 1 layer at twice r"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_loss": 1.0, "uniform": "2:6"}, "2 rules"),
        ({"latency": 1.0, "target_speedup": 2.0}, "--target-speedup and --latency are 2 rules"),
        ({"r": 0.2, "origins": {"r": "--r 0.2"}, "max_loss": 1.0}, "2 rules"),
        ({"uniform": "3:5"}, "3:5 is no candidate: these are 8:0, 4:4, 2:6, 1:7"),
        ({"fix": "7=2:6"}, "no layer 7"),
        ({"fix": "0"}, "fixes no layer"),
        ({"r": float("inf")}, "inf is no number"),
        ({"r": -0.1}, "-0.1 is no number"),
        ({"target_speedup": float("nan")}, "nan is no number"),
    ],
)
def test_rules_that_are_none(options: dict, told: str):
    with pytest.raises(EvditError, match=told):
        read_rule(SearchMasksOptions(**options), MASKS, 3, PlanCosts(kept_shares(MASKS), "kept share"))
