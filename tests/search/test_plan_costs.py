"""Costs in seconds out of a table: whose call they are of, the plans they lead to, and what is foretold of these."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from tests.closeness import assert_close
from tests.search.made import MASKS, table_of, times_of
from vdit_cli.attention.costs import CostTable
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search.candidates import in_order
from vdit_cli.search.mask_costs import Call
from vdit_cli.search.plan_choice import Searched, choose
from vdit_cli.search.plan_costs import call_at, call_of, read_costs
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

TABLE = table_of([[0, 0.02, 0.06, 0.3], [0, 0.15, 0.3, 0.9], [0, 0.01, 0.02, 0.04]])
OWN = Call(VideoGrid(8, 4, 6), 6, 48, 2, "float32")
SECONDS = {"8:0": 0.4, "4:4": 0.41, "2:6": 0.1, "1:7": 0.09}
"""In which 4:4 does not pay, and 1:7 hardly more than 2:6."""
THERE = Call(VideoGrid(8, 45, 80), 24, 96, 2, "bfloat16")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A cost table of the model's own call."""
    return times_of(OWN, SECONDS).write(tmp_path / "costs.json")


def chosen(file: Path | None, table: SensitivityTable = TABLE, **options: object) -> Searched:
    """The choice from a table by costs in a file."""
    costs = None if file is None else str(file)
    return choose(table, SearchMasksOptions(costs=costs, **options), Path("run"))


def names(found: Searched) -> list[str]:
    return [mask.name for mask in found.plan.masks]


def test_the_call_is_that_of_the_trajectory():
    """Grid, heads and width of the model, both branches where it was guided, and the type it ran in."""
    assert call_of(TABLE) == OWN
    plain = replace(TABLE, settings={"guidance": 1.0, "dtype": "bfloat16"})
    assert call_of(plain) == replace(OWN, batch=1, dtype="bfloat16")
    for settings in ({}, {"guidance": 7.5}, {"guidance": "x", "dtype": "float32"}, {"guidance": 1, "dtype": None}):
        with pytest.raises(EvditError, match="does not say its guidance and dtype"):
            call_of(replace(TABLE, settings=settings))


def test_times_change_the_plan(file: Path):
    """By shares 4:4 in layers is how to be 1.3 times cheaper; by these times it costs more than full attention."""
    assert names(chosen(None, target_speedup=1.3)) == ["4:4", "8:0", "1:7"]
    by_time = chosen(file, target_speedup=1.3)
    assert names(by_time) == ["8:0", "8:0", "2:6"]
    assert names(chosen(None, max_loss=0.065)) == ["4:4", "8:0", "1:7"]
    assert names(chosen(file, max_loss=0.065)) == ["8:0", "8:0", "1:7"]


@pytest.mark.numerical
def test_what_is_foretold_of_a_plan(file: Path):
    """Of any rule; the speed-up of a step by the seconds that it takes beside attention, null where these are unknown.

    In the closed form of two sums: three full layers take 1.2 s, the plan .1 + .4 + .09.
    """
    found = chosen(file, step_rest=0.3)
    assert names(found) == ["2:6", "8:0", "1:7"]
    predicted = found.plan.predicted
    assert_close(predicted["attention_seconds"], 0.59)
    assert_close(predicted["attention_speedup"], 1.2 / 0.59)
    assert_close(predicted["step_speedup"], 1.5 / 0.89)
    kept = (34 / 64 + 1 + 22 / 64) / 3
    assert_close((predicted["kept_share"], predicted["skipped_share"]), (kept, 1 - kept))
    assert predicted["costs"] == f"seconds of {OWN}, on a GPU"
    assert found.plan.made_by["costs"] == CostTable.load(file).digest and found.plan.made_by["step_rest"] == 0.3
    line = found.sentences()[1]
    assert line.startswith("attention takes 0.59 s of a step, the step 1.69 x faster: by seconds of batch 2")
    assert chosen(file).plan.predicted["step_speedup"] is None and "the step" not in chosen(file).sentences()[1]
    uniform = chosen(file, uniform="2:6").plan.predicted
    assert_close((uniform["attention_speedup"], uniform["attention_seconds"]), (4.0, 0.3))


def test_what_takes_longer_is_told_as_slower(file: Path):
    """On the other side of the same table: .36 s by 4:4 in three layers would be faster, so times are put up here."""
    slow = times_of(OWN, {"8:0": 0.4, "4:4": 0.5, "2:6": 0.48, "1:7": 0.44}).write(file.parent / "slow.json")
    found = chosen(slow, uniform="4:4", step_rest=0.3)
    assert "attention 1.25 x slower; " in found.sentences()[0]
    assert found.sentences()[1].startswith("attention takes 1.5 s of a step, the step 1.20 x slower: by")


def test_without_a_table_nothing_is_foretold_in_seconds():
    """Costs are kept shares, as ever."""
    predicted = chosen(None).plan.predicted
    assert (predicted["attention_seconds"], predicted["step_speedup"], predicted["costs"]) == (None, None, "kept share")
    assert "costs" not in chosen(None).plan.made_by and "by their number" in chosen(None).sentences()[0]


def test_a_latency_is_met_by_the_plan_of_least_loss(file: Path):
    """Exactly at its sum; a little below it another plan is the best; below the cheapest that comes nearest."""
    at = chosen(file, latency=0.4 + 0.1 + 0.1)
    assert (names(at), at.choice.met) == (["2:6", "8:0", "2:6"], True)
    below = chosen(file, latency=0.5999)
    assert (names(below), below.choice.met) == (["2:6", "8:0", "1:7"], True)
    most = chosen(file, latency=0.2)
    assert (names(most), most.choice.met) == (["1:7"] * 3, False)
    assert "attention takes 0.27 s" in most.sentences()[1] and "comes nearest" in most.sentences()[2]
    fixed = chosen(file, latency=0.6, fix="0=dense")
    assert (names(fixed), fixed.choice.met) == (["8:0", "2:6", "2:6"], True)


@pytest.mark.numerical
def test_a_layer_outside_the_nest_pays_for_gathering(tmp_path: Path):
    """3:5 does not nest with 4:4: one of the two layers gathers, in the sum and in the choice."""
    masks = in_order([*MASKS, TileMask.parse("3:5", 8)], 8)
    table = table_of([[0, 0.01, 9, 9, 9], [0, 9, 0.01, 9, 9]], masks=masks)
    seconds = {"8:0": 1.0, "4:4": 0.7, "3:5": 0.6, "2:6": 0.5, "1:7": 0.4}
    cheap = times_of(OWN, seconds, gather=0.1).write(tmp_path / "cheap.json")
    found = chosen(cheap, table, max_loss=0.05)
    assert names(found) == ["4:4", "3:5"]
    assert_close(found.plan.predicted["attention_seconds"], 0.7 + 0.6 + 0.1)
    dear = times_of(OWN, seconds, gather=0.5).write(tmp_path / "dear.json")
    assert names(chosen(dear, table, max_loss=0.05)) == ["8:0", "3:5"]


@pytest.mark.numerical
def test_a_layer_stands_for_those_of_another_model(tmp_path: Path):
    """Each of 3 layers for 32 / 3 of Open-Sora-Plan's 32, so that seconds are of that model's step."""
    seconds = {"8:0": 0.0142, "4:4": 0.0136, "2:6": 0.0094, "1:7": 0.0062}
    file = times_of(THERE, seconds).write(tmp_path / "costs.json")
    found = chosen(file, costs_at="open-sora-plan-29", step_rest=0.2)
    assert names(found) == ["2:6", "8:0", "1:7"]
    expected = 32 / 3 * (0.0094 + 0.0142 + 0.0062)
    assert_close(found.plan.predicted["attention_seconds"], expected)
    assert_close(found.plan.predicted["step_speedup"], (0.2 + 32 * 0.0142) / (0.2 + expected))
    assert found.plan.predicted["costs"] == f"seconds of {THERE}, 10.6667 calls a layer, on a GPU"
    assert found.plan.made_by["costs_at"] == "open-sora-plan-29"
    exact = float(Fraction(32, 3) * sum(map(Fraction, (0.0094, 0.0142, 0.0062))))
    assert chosen(file, costs_at="open-sora-plan-29", latency=exact).choice.met
    with pytest.raises(EvditError, match="do not tell what batch 2 of 8 frames of 24 tokens"):
        chosen(file)


def test_another_model_is_looked_up_in_bfloat16_else_in_the_own_type():
    """Its grid, heads and width; as many branches as the trajectory has; what is measured is told in bfloat16."""
    assert call_at("open-sora-plan-29", OWN, times_of(OWN, SECONDS), "")[0] == THERE
    plain = replace(THERE, dtype="float32")
    assert call_at("open-sora-plan-29", OWN, times_of(plain, SECONDS), "") == (plain, 32)
    both = times_of(plain, SECONDS)
    both = replace(both, rows={**both.rows, **times_of(THERE, SECONDS).rows})
    assert call_at("open-sora-plan-29", OWN, both, "") == (THERE, 32)
    single = replace(OWN, batch=1)
    assert call_at("open-sora-plan-29", single, both, "")[0].batch == 1


@pytest.mark.parametrize(
    ("options", "told", "step"),
    [
        ({"latency": 0.1}, "--latency 0.1 is about seconds", "no --latency"),
        ({"costs_at": "shapes"}, "--costs-at shapes is about seconds", "no --costs-at"),
        ({"step_rest": 0.0}, "--step-rest 0.0 is about seconds", "no --step-rest"),
    ],
)
def test_seconds_need_a_table(options: dict, told: str, step: str):
    """Said in words, with what measures one."""
    with pytest.raises(EvditError, match=told) as caught:
        chosen(None, **options)
    assert caught.value.exit_code == USAGE
    assert caught.value.next_steps == ("--costs RUN  (of evdit bench attention)", step)


@pytest.mark.parametrize(
    ("options", "told", "steps"),
    [
        (
            {"costs_at": "open-sora-29"},
            "unknown model 'open-sora-29'",
            ("--costs-at open-sora-plan-29", "--costs-at open-sora-plan-93", "--costs-at shapes"),
        ),
        ({"costs_at": "tiles-256"}, "unknown model 'tiles-256'", None),
        (
            {"costs_at": "open-sora-plan-93"},
            "open-sora-plan-93 has 24 latent frames and the masks are over 8",
            ("--costs-at open-sora-plan-29", "--costs-at shapes"),
        ),
        ({"latency": float("nan")}, "nan is no number", None),
        ({"latency": 0.0}, "0.0 is no number", None),
        ({"latency": float("inf")}, "inf is no number", None),
        ({"latency": -1.0}, "-1.0 is no number", None),
    ],
)
def test_bad_input(file: Path, options: dict, told: str, steps: tuple[str, ...] | None):
    """Names that are none, models of other frames, numbers that are none."""
    with pytest.raises(EvditError, match=told) as caught:
        chosen(file, **options)
    assert caught.value.exit_code == USAGE and (steps is None or caught.value.next_steps == steps)


def test_a_table_of_another_model_is_refused_with_what_measures_its_own(tmp_path: Path):
    """Of one branch, here; the origin is the flag or the line of the recipe."""
    file = times_of(replace(OWN, batch=1), SECONDS).write(tmp_path / "costs.json")
    options = SearchMasksOptions(costs=str(file), origins={"costs": "mine.yaml:3 search_masks.costs"})
    with pytest.raises(EvditError, match="the table has batch 1 of 8 frames of 24 tokens") as caught:
        read_costs(options, MASKS, 3, lambda: OWN)
    assert caught.value.where == "mine.yaml:3 search_masks.costs"
    assert caught.value.next_steps == (OWN.measuring(MASKS),) and "--batch 2" in caught.value.next_steps[0]
