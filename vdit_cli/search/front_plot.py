"""A front in a terminal: a plot of plain letters, and a line for each plan that a person asks about. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from vdit_cli.search.choose import Choice
from vdit_cli.search.pareto import Pareto
from vdit_cli.tiles.mask import TileMask, mean_kept_share

WIDTH, HEIGHT = 64, 16
"""Cells of the plot, which is as wide as a terminal of 80 columns takes."""
SWEEP, FRONT, UNIFORM, CHOSEN = "r.u#"
"""Letters of the plot; of what falls into one cell the last of these is shown."""
COLUMNS = ("plan", "kept", "skipped", "attention", "loss", "least at its cost")


def lines(found: Pareto, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """The plot with its legend, and the table of the uniform masks and the chosen plan."""
    cells, x_least, x_most, y_most = _cells(found, width, height)
    top, bottom = f"{y_most:.3g}", "0"
    left = max(len(top), len(bottom))
    told = {0: top, height - 1: bottom}
    rows = [f"{told.get(row, ''):>{left}} |{''.join(cells[row])}".rstrip() for row in range(height)]
    ends = f"{x_least:.3g}", f"{x_most:.3g}"
    name = x_label(found)
    middle = name.center(width - len(ends[0]) - len(ends[1]))
    legend = [f"{SWEEP} a plan of --r ({len(found.sweep)} in all)"]
    legend += [f"{FRONT} a plan that no other beats ({len(found.front)} in all)", f"{UNIFORM} a uniform mask"]
    legend += [f"{CHOSEN} the chosen plan"] if found.chosen else []
    return [
        f"summed {found.by} score",
        *rows,
        " " * (left + 1) + "+" + "-" * width,
        " " * (left + 2) + ends[0] + middle + ends[1],
        *legend,
        "Where plans share a place, the last of these letters is shown.",
        "",
        *_table(found),
    ]


def plans(count: int) -> str:
    """So many plans, in words."""
    return "1 plan" if count == 1 else f"{count} plans"


def x_label(found: Pareto) -> str:
    """What the costs of plans are, as an axis says it."""
    return "kept share of the tiles" if found.costs.unit == "kept share" else f"attention, {found.costs.unit}"


def x_of(found: Pareto, cost: float) -> float:
    """A plan's cost as the axis has it: the mean kept share of its layers, or its seconds."""
    return cost / found.table.architecture.layers if found.costs.unit == "kept share" else cost


def points(found: Pareto) -> dict[str, list[tuple[float, float]]]:
    """(x, loss) of all plans by the letter of their kind."""
    front = zip(found.front.costs.tolist(), found.front.losses.tolist(), strict=True)
    told = {
        SWEEP: [(each.choice.cost, each.choice.loss) for each in found.sweep],
        FRONT: list(front),
        UNIFORM: [(each.cost, each.loss) for each in found.uniforms],
        **({CHOSEN: [(found.chosen.cost, found.chosen.loss)]} if found.chosen else {}),
    }
    return {letter: [(x_of(found, cost), loss) for cost, loss in pairs] for letter, pairs in told.items()}


def _cells(found: Pareto, width: int, height: int) -> tuple[list[list[str]], float, float, float]:
    """The letters of the plot, least and most x, and the most loss; the least is 0."""
    drawn = points(found)
    x_all, y_all = zip(*(point for kind in drawn.values() for point in kind), strict=True)
    x_least, x_most, y_most = min(x_all), max(x_all), max(y_all)
    cells = [[" "] * width for _ in range(height)]
    for letter, told in drawn.items():
        for x, y in told:
            across = (x - x_least) / ((x_most - x_least) or 1)
            up = y / (y_most or 1)
            cells[round((1 - up) * (height - 1))][round(across * (width - 1))] = letter
    return cells, x_least, x_most, y_most


def _table(found: Pareto) -> list[str]:
    """The uniform masks from the sparsest on and the chosen plan, aligned."""
    uniforms = zip(told_apart(found.costs.masks), found.uniforms, strict=True)
    named = [(f"uniform {name}", each) for name, each in uniforms][::-1]
    named += [("chosen", found.chosen)] if found.chosen else []
    rows = [COLUMNS, *(_row(found, name, choice) for name, choice in named)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def told_apart(masks: Sequence[TileMask]) -> list[str]:
    """The masks' names; where two strides give as many global frames, so the same name, with the first of these."""
    count = Counter(mask.name for mask in masks)

    def told(mask: TileMask) -> str:
        first = map(str, mask.global_frames[:2])
        more = ", ..." if len(mask.global_frames) > 2 else ""
        return f"{mask.name} ({', '.join(first)}{more})" if count[mask.name] > 1 else mask.name

    return [told(mask) for mask in masks]


def _row(found: Pareto, name: str, choice: Choice) -> tuple[str, ...]:
    kept, least = mean_kept_share(choice.masks), found.least_loss(choice.cost)
    told = "none" if least is None else f"{least:.4g}"
    return name, f"{kept:.3f}", f"{1 - kept:.3f}", f"{choice.speedup:.2f} x", f"{choice.loss:.4g}", told
