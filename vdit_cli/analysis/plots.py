"""The report's plots as SVG written by hand: axes with units, points that say their numbers, colours from the page.

Each plot is 340 x 212 units and grows with its place. What lies inside an element with a <title> says it when it is
pointed at; the page's script steps through these with the arrow keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from vdit_cli.analysis.findings import (
    BETWEEN,
    RATIO,
    Findings,
    agrees,
    first_differences,
    mean,
    stability_at,
    stability_mass,
)
from vdit_cli.analysis.results import Analysis
from vdit_cli.analysis.words import chance_of, share

WIDTH, HEIGHT = 340, 212
LEFT, RIGHT, TOP, BOTTOM = 44, 24, 12, 42


class Plot:
    """One pair of axes: `x` and `y` are (least, most), the labels say what and in which unit."""

    def __init__(self, name: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str]) -> None:
        self.name, self.labels = name, labels
        self.least_x, self.most_x = x
        self.least_y, self.most_y = y
        self.parts: list[str] = []

    def at_x(self, value: float) -> float:
        """Where a value stands from the left."""
        width = WIDTH - LEFT - RIGHT
        return round(LEFT + width * (value - self.least_x) / ((self.most_x - self.least_x) or 1), 1)

    def at_y(self, value: float) -> float:
        """Where a value stands from the top; what is out of range stands at the edge."""
        height = HEIGHT - TOP - BOTTOM
        part = (value - self.least_y) / ((self.most_y - self.least_y) or 1)
        return round(TOP + height * (1 - min(1.0, max(0.0, part))), 1)

    def curve(self, values: Sequence[tuple[float, float]], css: str, said: str = "") -> None:
        """A line through (x, y) values."""
        path = "M" + "L".join(f"{self.at_x(x):g} {self.at_y(y):g}" for x, y in values)
        title = f"<title>{escape(said)}</title>" if said else ""
        self.parts.append(f'<path class="{css}" d="{path}">{title}</path>')

    def point(self, x: float, y: float, css: str, said: str) -> None:
        """A dot that says its numbers, with room around it to point at."""
        place = f'cx="{self.at_x(x):g}" cy="{self.at_y(y):g}"'
        self.parts.append(
            f'<g class="point"><title>{escape(said)}</title><circle class="hit" {place} r="9"/>'
            f'<circle class="{css}" {place} r="3.6"/></g>'
        )

    def upright(self, x: float, low: float, high: float, css: str) -> None:
        """A vertical line at x."""
        self.parts.append(f'<path class="{css}" d="M{self.at_x(x):g} {self.at_y(low):g}V{self.at_y(high):g}"/>')

    def level(self, y: float, said: str = "") -> None:
        """A dashed line across, its short name at the right end."""
        place = self.at_y(y)
        self.parts.append(
            f'<path class="dashed" d="M{LEFT} {place:g}H{WIDTH - RIGHT}"/>'
            f'<text class="said" x="{WIDTH - RIGHT + 4}" y="{place + 4:g}">{escape(said)}</text>'
        )

    def svg(self, x_ticks: Iterable[float], y_ticks: Iterable[float]) -> str:
        """The plot as an <svg> element."""
        axes = []
        for tick in y_ticks:
            y = self.at_y(tick)
            axes.append(f'<path class="rule" d="M{LEFT} {y:g}H{WIDTH - RIGHT}"/>')
            axes.append(f'<text class="tick y" x="{LEFT - 7}" y="{y + 4:g}">{escape(label_of(tick))}</text>')
        for tick in x_ticks:
            axes.append(f'<text class="tick" x="{self.at_x(tick):g}" y="{HEIGHT - BOTTOM + 17}">{tick:g}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        axes.append(f'<text class="axis" x="{middle:g}" y="{HEIGHT - 6}">{escape(self.labels[0])}</text>')
        down = (TOP + HEIGHT - BOTTOM) / 2
        axes.append(
            f'<text class="axis" transform="translate(11 {down:g}) rotate(-90)">{escape(self.labels[1])}</text>'
        )
        return (
            f'<svg class="plot explore" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" data-step="1" '
            f'aria-label="{escape(self.name)}">{"".join(axes)}{"".join(self.parts)}</svg>'
        )


def label_of(value: float) -> str:
    """A tick's number: shares without their zero, whole numbers as they are."""
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.3g}".replace("0.", ".", 1)


def even_ticks(least: float, most: float, about: int = 5) -> list[float]:
    """Round numbers from `least` to `most`, about so many."""
    rough = (most - least) / about if most > least else 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * part for part in (1, 2, 5, 10) if power * part >= rough * 0.999)
    first = math.ceil(least / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(most / step + 1e-9) + 1)]


def whole_ticks(least: int, most: int, about: int = 12) -> list[int]:
    """Whole numbers from `least` to `most`, at most about so many."""
    step = next(step for step in (1, 2, 3, 4, 5, 8, 10, 16, 20, 50, 100, 1000) if (most - least) / step <= about)
    return list(range(least, most + 1, step))


Curves = dict[int, dict[int, float]]
"""By layer: (place on the x axis) to value."""


def curves_plot(
    name: str, curves: Curves, labels: tuple[str, str], marked: Sequence[int], chance: tuple[float, str] | None = None
) -> str:
    """A thin line a layer (those in `marked` in colour), the mean of the layers on top, uniform attention dashed."""
    places = sorted({place for curve in curves.values() for place in curve})
    values = [value for curve in curves.values() for value in curve.values()] + ([chance[0]] if chance else [])
    least, most = min(0.0, *values), max(*values, 1e-9)
    most = 1.0 if least < 0 or 0.8 < most <= 1 else most * 1.08
    plot = Plot(name, (places[0], places[-1]), (least, most), labels)
    for layer, curve in curves.items():
        if len(curve) > 1:
            plot.curve(list(curve.items()), "thin has" if layer in marked else "thin", f"layer {layer}")
    if chance:
        plot.level(*chance)
    means = {place: [curve[place] for curve in curves.values() if place in curve] for place in places}
    plot.curve([(place, mean(told)) for place, told in means.items()], "bold")
    for place, told in means.items():
        spread = f"layers {share(min(told))} to {share(max(told))}"
        said = f"{labels[0].split(' (')[0]} {place}: mean {share(mean(told))}, {spread}"
        plot.point(place, mean(told), "dot", said)
    return plot.svg(whole_ticks(places[0], places[-1]), even_ticks(least, most))


def repetition_plot(analysis: Analysis, found: Findings) -> str:
    """(a) mean correlation between tiles by their lag; empty where there is none."""
    curves = {
        each.layer: {lag: value for lag, value in enumerate(each.repetition) if value is not None}
        for each in analysis.layers
    }
    curves = {layer: curve for layer, curve in curves.items() if curve}
    marked = found.properties[0].layers
    labels = ("lag (latent frames)", "mean correlation")
    return curves_plot("Mean correlation of tiles by lag", curves, labels, marked) if curves else ""


def ratio_plot(analysis: Analysis, found: Findings) -> str:
    """(b) the diagonal's ratio to the other tiles by layer, with its spread over samples."""
    layers = analysis.layers
    most = max(1.5, *((each.ratio + each.ratio_spread) * 1.08 for each in layers))
    plot = Plot(
        "Diagonal ratio by layer",
        (layers[0].layer - 0.5, layers[-1].layer + 0.5),
        (0, most),
        ("layer", "diagonal / other tiles"),
    )
    plot.level(RATIO, f"{RATIO:g}")
    plot.curve([(layers[0].layer - 0.5, 1), (layers[-1].layer + 0.5, 1)], "uniform")
    for each in layers:
        css = "dot" if each.layer in found.structured else "dot hollow"
        plot.upright(each.layer, each.ratio, 1, "stem has" if each.layer in found.structured else "stem")
        plot.upright(each.layer, each.ratio - each.ratio_spread, each.ratio + each.ratio_spread, "whisker")
        said = f"layer {each.layer}: ratio {each.ratio:.2f} ± {each.ratio_spread:.2f}, diagonal {share(each.diagonal)}"
        plot.point(each.layer, each.ratio, css, said)
    return plot.svg(whole_ticks(layers[0].layer, layers[-1].layer), even_ticks(0, most))


def distance_plot(analysis: Analysis, found: Findings) -> str:
    """(c) mean mass of a tile by the distance between its frames."""
    curves = {each.layer: dict(enumerate(each.by_distance)) for each in analysis.layers}
    chance = (1 / analysis.grid.frames, chance_of(analysis.grid.frames))
    labels = ("distance (latent frames)", "mass of a tile")
    return curves_plot("Mass of a tile by distance", curves, labels, found.properties[2].layers, chance)


def difference_plot(analysis: Analysis, found: Findings) -> str:
    """(c) how far the first frame's tiles are from its own; empty where that tile holds nothing."""
    told = {each.layer: first_differences(analysis, each) for each in analysis.layers}
    curves = {layer: dict(enumerate(values)) for layer, values in told.items() if values is not None}
    labels = ("key frame (latent frames)", "difference / own mean")
    name = "Difference of the first frame's tiles from its own"
    return curves_plot(name, curves, labels, found.properties[2].layers) if curves else ""


def stability_plots(analysis: Analysis) -> list[tuple[str, str]]:
    """(d) a plot for prompts, seeds and steps where compared: overlap by layer, and the chance level beside it."""
    mass = stability_mass(analysis)
    plots: list[tuple[str, str]] = []
    layers = analysis.layers
    for between in BETWEEN:
        told = {each.layer: stability_at(each, between, mass) for each in layers} if mass is not None else {}
        there = {layer: each for layer, each in told.items() if each is not None}
        if not there:
            continue
        plot = Plot(
            f"Overlap of positions between {between}, by layer",
            (layers[0].layer - 0.5, layers[-1].layer + 0.5),
            (0, 1),
            ("layer", "overlap (share of positions)"),
        )
        for layer, each in there.items():
            holds = agrees(each)
            plot.upright(layer, each.chance_overlap, each.overlap, "stem has" if holds else "stem")
            plot.parts.append(
                f'<path class="chance" d="M{plot.at_x(layer) - 4:g} {plot.at_y(each.chance_overlap):g}h8"/>'
            )
            error = "" if each.error is None else f" ± {share(each.error)}"
            said = f"layer {layer}: overlap {share(each.overlap)}{error}, chance {share(each.chance_overlap)}"
            plot.point(layer, each.overlap, "dot" if holds else "dot hollow", said)
        ticks = whole_ticks(layers[0].layer, layers[-1].layer)
        plots.append((between, plot.svg(ticks, even_ticks(0, 1))))
    return plots
