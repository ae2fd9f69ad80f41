"""The front in a terminal: where its letters stand, and the table below."""

from __future__ import annotations

from tests.search.made import MASKS, table_of
from vdit_cli.search.candidates import usual_masks
from vdit_cli.search.front_plot import CHOSEN, FRONT, SWEEP, UNIFORM, lines, told_apart
from vdit_cli.search.mask_costs import MaskCosts, kept_shares
from vdit_cli.search.pareto import Pareto, pareto
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

LOSSES = [[0, 0.1, 0.2, 1.0], [0, 0.1, 0.2, 1.0]]


def _made(names: tuple[str, str] | None = ("1:7", "8:0")) -> Pareto:
    table = table_of(LOSSES)
    masks = {mask.name: mask for mask in MASKS}
    plan = MaskPlan("shapes", table.grid, tuple(masks[name] for name in names)) if names else None
    return pareto(table, "attention", kept_shares(MASKS), plan)


def test_letters_stand_where_their_plans_are():
    """Kept shares 22/64 to 1 across, summed scores 2 to 0 down: corners are uniform, 1:7 + 8:0 in the middle."""
    told = lines(_made(), width=41, height=11)
    cells = [row.partition("|")[2].ljust(41) for row in told[1:12]]
    assert told[0] == "summed attention score"
    assert cells[0][0] == cells[10][40] == UNIFORM
    assert cells[5][20] == CHOSEN
    # 4:4 twice: kept 52/64, at 40 * (52 - 22) / (64 - 22) = 28.6, score .2 of 2 is one row from below.
    assert cells[9][29] == UNIFORM
    # 4:4 once: kept 58/64, at 34.3; score .1 is half a row, and half goes to even.
    assert FRONT in {cells[row][34] for row in (9, 10)}
    assert told[1].startswith("2 |") and told[11].startswith("0 |")
    assert told[13].split()[0] == "0.344" and told[13].split()[-1] == "1" and "kept share of the tiles" in told[13]


def test_the_front_is_seen_before_what_a_threshold_gives():
    """Equal layers: every plan of a threshold is uniform here, so no letter of the sweep is left."""
    assert SWEEP not in "".join(row.partition("|")[2] for row in lines(_made())[1:17])


def test_the_legend_counts_and_the_table_compares():
    told = "\n".join(lines(_made()))
    assert f"{SWEEP} a plan of --r (4 in all)" in told and f"{CHOSEN} the chosen plan" in told
    assert f"{FRONT} a plan that no other beats ({len(_made().front)} in all)" in told
    rows = [line.split() for line in lines(_made())[-5:]]
    assert rows[0] == ["uniform", "1:7", "0.344", "0.656", "2.91", "x", "2", "2"]
    assert rows[4] == ["chosen", "0.672", "0.328", "1.49", "x", "1", "0.3"]


def test_without_a_plan_none_is_told():
    told = "\n".join(lines(_made(None)))
    assert "chosen" not in told


def test_seconds_are_told_as_seconds():
    costs = MaskCosts(MASKS, (1.0, 0.9, 0.45, 0.3), 0.0, "seconds")
    told = lines(pareto(table_of(LOSSES), "attention", costs))
    axis = next(line for line in told if "attention, seconds" in line)
    assert (axis.split()[0], axis.split()[-1]) == ("0.6", "2")


def test_lines_are_plain_and_fit_a_terminal():
    assert all(line.isascii() and len(line) <= 80 for line in lines(_made()))
    masks = usual_masks(99)
    longest = pareto(
        table_of([[0.01234 * place for place in range(len(masks))]], masks=masks), "attention", kept_shares(masks)
    )
    assert all(line.isascii() and len(line) <= 80 for line in lines(longest))


def test_uniform_masks_of_one_name_are_told_apart():
    """Of 24 frames strides 12 and 16 are both 2:22, of 25 also 13 to 24; what has its name alone is told by it."""
    masks = usual_masks(24)
    found = pareto(table_of([[0.0, *range(1, len(masks))]], masks=masks), "attention", kept_shares(masks))
    named = [
        line.rpartition("uniform ")[2].partition("  ")[0] for line in lines(found) if line.lstrip().startswith("uni")
    ]
    assert named == ["1:23", "2:22 (0, 16)", "2:22 (0, 12)", "3:21", "4:20", "6:18", "8:16", "12:12", "24:0"]
    both = [TileMask.from_stride(100, stride) for stride in (25, 26, 50)]
    assert told_apart(both) == ["4:96 (0, 25, ...)", "4:96 (0, 26, ...)", "2:98"]


def test_a_table_of_no_differences_is_drawn():
    """All losses 0 and one candidate more than the full mask: one point on the front, and no division by zero."""
    found = pareto(table_of([[0, 0]], masks=(MASKS[0], MASKS[3])), "attention", kept_shares((MASKS[0], MASKS[3])))
    assert len(found.front) == 1 and any(UNIFORM in line for line in lines(found)[1:17])
