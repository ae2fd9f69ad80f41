"""`report.html`: one file that shows an analysis, opens from disk and asks nothing of any network.

The page's frame, style and script stand in report.html.in; every number comes from the Analysis, every word that a
person wrote is escaped.
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from string import Template

from vdit_cli.analysis import heat, plots, report_tables
from vdit_cli.analysis.findings import RATIO, Finding, Findings
from vdit_cli.analysis.ramp import scale_top
from vdit_cli.analysis.results import Analysis, LayerAnalysis
from vdit_cli.analysis.words import counted, share, times
from vdit_cli.artifacts.atomic import write_text

FILE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html.in")

HOW = {
    "repetition": "Tile (i, j) is compared with the tiles on its own lag, j - i, position by position, on the sampled "
    "rows. 1 is identical, 0 unrelated. Thin: a layer, in colour where tiles repeat; thick: the mean of all layers.",
    "diagonal": "The mean mass of a frame's own tile over the mean of all others; 1 is uniform attention. A layer has "
    f"tile structure (filled) when the lower end of its ratio's 95 % interval over prompts and seeds is above "
    f"{RATIO:g} (dashed). Whiskers: one standard deviation over the samples.",
    "locality": "First, the mean mass of a tile by the distance between its frames (dashed: uniform). Second, "
    "how far the tiles of the first frame's queries are from its own tile, element by element, in units of that tile's "
    "mean element. Thin: a layer, in colour where mass falls; thick: the mean of all layers.",
    "stability": "For two samples, the smallest sets of positions that hold the mass, and the share of the first that "
    "lies in the second. The bar across is what sets of that size would share by chance; filled where the overlap goes "
    "half of the way from chance to 1 or more.",
}
"""How each property's plots are read."""


def write_report(analysis: Analysis, found: Findings, folder: Path | str) -> Path:
    """Write report.html into `folder`, whole or not at all, and give its path. Raises EvditError as write_text does."""
    file = Path(folder) / FILE
    write_text(file, page(analysis, found))
    return file


def page(analysis: Analysis, found: Findings) -> str:
    """The whole page as HTML."""
    top = scale_top(analysis)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Attention tiles of {analysis.model}"),
        model=escape(analysis.model),
        colours=heat.styles(),
        gradient=heat.gradient(),
        verdict=prose(found.verdict),
        verdict_mark=mark(found.has_pattern, "tile structure", "no tile structure"),
        lead=prose(found.sentences["diagonal"]),
        facts=facts(analysis),
        mean_map=mean_map(analysis, top),
        legend=legend(analysis, top),
        tiles="".join(layer_map(each, found, top) for each in analysis.layers),
        properties="".join(property_section(each, analysis, found) for each in found.properties),
        masks_sentence=prose(found.masks.sentence),
        masks=report_tables.masks_table(analysis, found),
        layers=report_tables.layers_table(analysis, found),
        heads="".join(heads(each, top) for each in analysis.layers),
        heads_top=share(top),
        settings=report_tables.settings(analysis),
        command=escape(analysis.settings.command),
    )


def prose(sentence: str) -> str:
    """A finding's sentence as HTML, with the signs that plain text has no letters for."""
    return escape(sentence).replace(" x ", "&nbsp;× ").replace("+-", "±")


def mark(holds: bool | None, yes: str = "holds", no: str = "does not hold") -> str:
    """A label: yes, no, or that it can't be told."""
    css, word = {True: ("yes", yes), False: ("no", no), None: ("open", "can't be told")}[holds]
    return f'<span class="mark {css}">{word}</span>'


def facts(analysis: Analysis) -> str:
    """The few numbers to know at once, as a description list."""
    grid, settings = analysis.grid, analysis.settings
    told = {
        "layers": f"{len(analysis.layers)}",
        "heads": " to ".join(map(str, sorted({min(h := [e.heads for e in analysis.layers]), max(h)}))),
        "latent frames": f"{grid.frames}",
        "tokens a frame": f"{grid.rows} × {grid.cols}",
        "text tokens": f"{grid.text_tokens}" if grid.text_tokens else "",
        "samples": f"{len(analysis.samples)}",
        "steps seen": f"{len(settings.steps_seen)} of {settings.steps}",
    }
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in told.items() if value)


def mean_map(analysis: Analysis, top: float) -> str:
    """The mean of all layers' tile masses with its axes."""
    frames, layers = analysis.grid.frames, analysis.layers
    masses = [
        [sum(each.tile_mass[i][j] for each in layers) / len(layers) for j in range(frames)] for i in range(frames)
    ]
    return heat.large_map(masses, top, "Mean of all layers", plots.whole_ticks(0, frames - 1))


def legend(analysis: Analysis, top: float) -> str:
    """The ramp with numbers: the mass at five places, chance marked."""
    chance = 1 / analysis.grid.frames
    marks = []
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):  # the ramp goes by the square root of the mass
        marks.append(f'<span style="left:{100 * part:g}%">{share(top * part * part)}</span>')
    place = 100 * (chance / top) ** 0.5
    return (
        '<figure class="legend"><div class="ramp" aria-hidden="true">'
        f'<i style="left:{place:.1f}%"></i></div><div class="numbers">{"".join(marks)}</div>'
        f"<figcaption>mass of a tile; the white line is chance, 1/{analysis.grid.frames}</figcaption></figure>"
    )


def layer_map(layer: LayerAnalysis, found: Findings, top: float) -> str:
    """A layer's heat map with its number, its diagonal against chance, and whether it has structure."""
    has = layer.layer in found.structured
    beside = f"{times(layer.diagonal / layer.chance)} × chance"
    name = f"Layer {layer.layer}: {share(layer.diagonal)} of the mass on the diagonal, {beside}"
    return (
        f'<figure class="tile{" has" if has else ""}">{heat.small_map(layer.tile_mass, top, name)}'
        f"<figcaption><b>Layer {layer.layer}</b> <span>{beside}</span>"
        f"<em>{'diagonal stands out' if has else 'no diagonal'}</em></figcaption></figure>"
    )


def property_section(finding: Finding, analysis: Analysis, found: Findings) -> str:
    """One of the four properties: heading, sentence, how to read it, plots."""
    drawn = {
        "repetition": lambda: [("", plots.repetition_plot(analysis, found))],
        "diagonal": lambda: [("", plots.ratio_plot(analysis, found))],
        "locality": lambda: [
            ("by distance", plots.distance_plot(analysis, found)),
            ("the first frame's tiles", plots.difference_plot(analysis, found)),
        ],
        "stability": lambda: [(f"between {name}", svg) for name, svg in plots.stability_plots(analysis)],
    }[finding.name]()
    figures = "".join(
        f"<figure>{svg}{f'<figcaption>{name}</figcaption>' if name else ''}</figure>" for name, svg in drawn if svg
    )
    table = report_tables.stability_table(analysis) if finding.name == "stability" else ""
    return (
        f'<article class="property" id="{finding.name}"><div class="said"><h3>{escape(finding.title)}</h3>'
        f'{mark(finding.holds)}<p class="sentence">{prose(finding.sentence)}</p>'
        f'<p class="how">{escape(HOW[finding.name])}</p></div>'
        f'<div class="plots">{figures}</div>{table}</article>'
    )


def heads(layer: LayerAnalysis, top: float) -> str:
    """A layer's heads, folded: one map each with its diagonal."""
    drawn = "".join(
        f"<figure>{heat.image(masses, top, f'layer {layer.layer}, head {head}: diagonal {share(diagonal)}')}"
        f"<figcaption>{head} <span>{share(diagonal)}</span></figcaption></figure>"
        for head, (masses, diagonal) in enumerate(zip(layer.head_tile_mass, layer.head_diagonals, strict=True))
    )
    least, most = share(min(layer.head_diagonals)), share(max(layer.head_diagonals))
    return (
        f"<details><summary><b>Layer {layer.layer}</b> {counted(layer.heads, 'head')}, diagonal {least} to {most}"
        f'</summary><div class="heads">{drawn}</div></details>'
    )
