"""A front as a PNG: loss against cost, with uniform masks, the plans of every r and the chosen one. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vdit_cli.artifacts.figure_file import write_png
from vdit_cli.errors import printable
from vdit_cli.search.front_plot import CHOSEN, FRONT, SWEEP, UNIFORM, plans, points, x_label
from vdit_cli.search.pareto import Pareto, thinned
from vdit_cli.search.plan_choice import layers_told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (8.0, 5.2)
DPI = 120
MOST_DRAWN = 400
"""Points of a front that are drawn: more would lie on each other."""
NAME_ROOM = 0.022
"""Of the axis: names of uniform masks stand at least so far apart."""


def draw(found: Pareto, path: Path) -> None:
    """Write the picture of a front to the PNG file `path`."""
    write_png(figure_of(found), path)


def thinning(found: Pareto) -> str:
    """How much of the front the picture shows, in words."""
    drawn = min(len(found.front), MOST_DRAWN)
    whole = plans(len(found.front))
    return f"{whole} that no other beats" + (f", {drawn} of them drawn" if drawn < len(found.front) else "")


def figure_of(found: Pareto) -> Figure:
    """The picture of a front, not yet written."""
    from matplotlib.figure import Figure

    drawn = points(found)
    front = [drawn[FRONT][place] for place in thinned(len(drawn[FRONT]), MOST_DRAWN)]
    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    told = f"{plans(len(found.sweep))} of a threshold, at every r"
    axes.plot(*zip(*drawn[SWEEP], strict=True), "o", color="#d9822b", markersize=5, fillstyle="none", label=told)
    x_F, y_F = zip(*front, strict=True)
    axes.step(x_F, y_F, where="post", color="#33508f", linewidth=1, marker=".", markersize=3.5, label=thinning(found))
    names: dict[float, str] = {}
    for (x, _), choice in zip(drawn[UNIFORM], found.uniforms, strict=True):
        name = choice.masks[0].name
        names[x] = f"{names[x]}, {name}" if names.get(x, name) != name else name
    named = apart(sorted(names))
    fewer = f", {len(named)} of {len(names)} named above" if len(named) < len(names) else ""
    axes.plot(*zip(*drawn[UNIFORM], strict=True), "s", color="#222222", markersize=5, label=f"uniform masks{fewer}")
    if CHOSEN in drawn:
        axes.plot(*zip(*drawn[CHOSEN], strict=True), "*", color="#c0392b", markersize=13, label="the chosen plan")
    axes.set(xlabel=x_label(found), ylabel=f"summed {found.by} score", ylim=(0, None))
    above = axes.secondary_xaxis("top")
    above.set_xticks(named, [names[x] for x in named], rotation=90, fontsize="small")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize="small")
    table = found.table
    title = f"{printable(table.model)[-60:]}, {layers_told(table.architecture.layers)}, {table.grid}"
    figure.suptitle(title, fontsize="medium", parse_math=False)
    return figure


def apart(places: list[float]) -> list[float]:
    """Of sorted places on the axis those that leave room for a name: the last one, and each far enough from others."""
    room = NAME_ROOM * ((places[-1] - places[0]) or 1)
    kept = places[-1:]
    for place in reversed(places[:-1]):
        if kept[-1] - place >= room:
            kept.append(place)
    return kept[::-1]
