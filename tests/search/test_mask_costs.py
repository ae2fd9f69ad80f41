"""Seconds of masks from a table that a machine measured."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from tests.search.made import MASKS
from vdit_cli.attention.bind import Case
from vdit_cli.attention.costs import GATHER, CostTable, Machine
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.search.candidates import usual_masks
from vdit_cli.search.mask_costs import Call, measured
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

CALL = Call(VideoGrid(8, 45, 80), 24, 96, 1, "bfloat16")
CASE = Case(CALL.grid, 24, 96, 1, torch.bfloat16, torch.device("cpu"))
MS = {"8:0": 14.23, "4:4": 13.65, "2:6": 9.404, "1:7": 6.213}


def table_of(case: Case, times: dict[str, float]) -> CostTable:
    """A table of these milliseconds by sdpa, twice as many by triton, and nothing else."""
    table = CostTable(Machine("a GPU", "2.13", "3.9", "1.0"))
    for name, ms in times.items():
        mask = TileMask.parse(name, case.grid.frames)
        table = table.with_times(mask, case, {"sdpa": ms / 1000, "triton": ms / 500})
    return table


def with_gather(table: CostTable, seconds: float) -> CostTable:
    """The table with a time of putting tokens in order."""
    return table.with_times(MASKS[0], CASE, {GATHER: seconds})


TABLE = table_of(CASE, MS)


@pytest.mark.numerical
def test_a_mask_costs_its_fastest_time():
    """In seconds; a layer may stand for several of the layers that were measured."""
    costs = measured(MASKS, TABLE, CALL)
    assert (costs.unit, costs.gather) == ("seconds", 0)
    assert_close([float(cost) for cost in costs.costs], [ms / 1000 for ms in MS.values()])
    assert_close(costs.of_plan((MASKS[0], MASKS[3], MASKS[3])), (14.23 + 2 * 6.213) / 1000)
    assert_close(costs.speedup(MASKS[3:] * 8), 14.23 / 6.213)
    four = measured(MASKS, with_gather(TABLE, 0.001), CALL, layers=Fraction(32, 8))
    assert_close([float(four.costs[1]), float(four.gather)], [4 * 0.01365, 0.004])


def test_what_does_not_change_the_work_does_not_matter():
    """Which frames are global, a frame's rows and columns, the side that the text stands on, a mask that is dense."""
    moved = (MASKS[0], TileMask(8, (1, 5)), TileMask(8, (7,)))
    assert [float(cost) for cost in measured(moved, with_gather(TABLE, 1e-4), CALL).costs] == [
        0.01423,
        0.009404,
        0.006213,
    ]
    turned = replace(CALL, grid=VideoGrid(8, 90, 40))
    assert measured(MASKS, TABLE, turned) == measured(MASKS, TABLE, CALL)
    before = table_of(replace(CASE, grid=VideoGrid(8, 45, 80, text_before=7)), MS)
    assert measured(MASKS, before, replace(CALL, grid=VideoGrid(8, 45, 80, text_after=7))).costs[3] == 0.006213
    full = (MASKS[0], TileMask(8, tuple(range(7))))
    assert len(set(measured(full, TABLE, CALL).costs)) == 1


CHANGES = [
    {"grid": VideoGrid(8, 45, 81)},
    {"grid": VideoGrid(8, 45, 80, text_after=7)},
    {"heads": 12},
    {"head_dim": 48},
    {"batch": 2},
    {"dtype": "float32"},
    {"needs_grad": True},
]


@pytest.mark.parametrize("change", CHANGES)
def test_times_of_another_call_are_refused(change: dict):
    """Of other sizes, another type, another architecture; with what the table has and what measures it."""
    other = replace(CALL, **change)
    with pytest.raises(EvditError, match="the times of a GPU do not tell what") as caught:
        measured(MASKS, TABLE, other)
    assert f"the table has {CALL}" in caught.value.what and str(other) in caught.value.what
    assert (caught.value.where, caught.value.exit_code) == ("--costs", USAGE)
    assert caught.value.next_steps == (other.measuring(MASKS),)


def test_times_of_other_frames_are_refused():
    """24 latent frames by a table of 8."""
    call = replace(CALL, grid=VideoGrid(24, 45, 80))
    with pytest.raises(EvditError, match="batch 1 of 24 frames of 3600 tokens"):
        measured(usual_masks(24), TABLE, call)


def test_an_empty_table_says_so():
    """It has no times."""
    with pytest.raises(EvditError, match="the table has no times"):
        measured(MASKS, replace(TABLE, rows={}), CALL)


@pytest.mark.parametrize("left_out", ["2:6", "8:0"])
def test_a_mask_without_a_time_says_what_to_measure(left_out: str):
    """A line to paste that measures all of them: a choice reads one table, and the missing one alone would not do."""
    table = table_of(CASE, {name: ms for name, ms in MS.items() if name != left_out})
    with pytest.raises(EvditError, match=f"no time of {left_out}") as caught:
        measured(MASKS, table, CALL)
    assert caught.value.next_steps == (
        "evdit bench attention --latent-frames 8 --frame-tokens 3600 --text 0 --heads 24 --head-dim 96 --batch 1 "
        "--dtype bfloat16 --masks 4:4,2:6,1:7",
    )


def test_masks_that_do_not_nest_need_the_time_of_gathering():
    """Without it the error names those that do not; with it, each layer outside the nest pays."""
    three = TileMask.from_stride(8, 3)
    table = TABLE.with_times(three, CASE, {"sdpa": 0.012})
    masks = (*MASKS[:2], three, *MASKS[2:])
    with pytest.raises(EvditError, match="not nested are 3:5") as caught:
        measured(masks, table, CALL)
    assert caught.value.next_steps[0] == CALL.measuring(masks)
    costs = measured(masks, with_gather(table, 0.5), CALL)
    assert costs.of_plan((MASKS[1], MASKS[2], three)) == float(sum(map(Fraction, (0.01365, 0.009404, 0.012, 0.5))))


def test_a_named_file_is_read_strictly(tmp_path: Path):
    """A table of any machine; and each kind of broken file is an error with its place."""
    file = TABLE.write(tmp_path / "costs.json")
    assert CostTable.load(file) == TABLE
    content = json.loads(file.read_text(encoding="utf-8"))
    for change in (
        {"schema": "evdit.cost-table/2"},
        {"rows": 7},
        {"rows": [{**content["rows"][0], "seconds": "rows"}]},
        {"rows": [{"rows": 1}]},
        {"machine": {"device": "x"}},
        {"machine": None},
    ):
        file.write_text(json.dumps({**content, **change}), encoding="utf-8")
        with pytest.raises(EvditError) as caught:
            CostTable.load(file)
        assert next(iter(change)) in f"{caught.value.where} {caught.value.what}".removeprefix(str(file))
    for text in ("", "{", "[]", "[" * 100_000):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(EvditError, match="cost table"):
            CostTable.load(file)
    with pytest.raises(EvditError, match="can't be read"):
        CostTable.load(tmp_path / "none.json")
