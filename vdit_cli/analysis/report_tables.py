"""The report's tables: the candidate masks, the layers, the stability, and the settings that made them."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from vdit_cli.analysis.findings import KEPT, Findings, mean, stability_at, stability_mass, uniform_mass
from vdit_cli.analysis.ramp import is_light, level_of_share
from vdit_cli.analysis.results import Analysis, LayerAnalysis
from vdit_cli.analysis.words import NONE, share, times
from vdit_cli.tiles.mask import TileMask


def boxed(name: str, head: str, body: Iterable[str]) -> str:
    """A table that scrolls inside its own box, by keys too."""
    return (
        f'<div class="box" role="region" tabindex="0" aria-label="{escape(name)}"><table><thead>{head}</thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def row(name: str, cells: Iterable[str]) -> str:
    """A row: its heading, then cells that are HTML already."""
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def heading(columns: Iterable[tuple[str, str]]) -> str:
    """The row of column headings: (name, what it means)."""
    return "<tr>" + "".join(f'<th scope="col" title="{escape(why)}">{name}</th>' for name, why in columns) + "</tr>"


def spread(value: float | None, error: float | None) -> str:
    """A number with its error behind it, in smaller letters."""
    told = share(value)
    return told if error is None or value is None else f"{told} <small>± {share(error)}</small>"


def masks_table(analysis: Analysis, found: Findings) -> str:
    """Mass that each candidate keeps of each layer, the guess framed; their mean and uniform attention below."""
    if not analysis.candidates:
        return ""
    masks = {name: TileMask.parse(name, analysis.grid.frames) for name in analysis.candidates}
    head = '<tr><th scope="col">layer</th>' + "".join(
        f'<th scope="col"><b>{name}</b><small>kept {share(mask.kept_share)}</small>'
        f"<small>skipped {share(mask.skipped_share)}</small></th>"
        for name, mask in masks.items()
    )
    body = []
    for each in analysis.layers:
        guess = found.guesses[each.layer]
        cells = "".join(_mass_cell(each.kept_mass[name], name == guess) for name in masks)
        body.append(f'<tr><th scope="row">{each.layer}</th>{cells}</tr>')
    means = [share(mean(each.kept_mass[name] for each in analysis.layers)) for name in masks]
    body.append(f'<tr class="sum"><th scope="row">mean</th>{"".join(f"<td>{told}</td>" for told in means)}</tr>')
    uniform = "".join(f"<td>{share(uniform_mass(analysis, name))}</td>" for name in masks)
    body.append(f'<tr class="sum"><th scope="row">uniform</th>{uniform}</tr>')
    return boxed(f"Mass that candidate masks keep; framed: the sparsest that keeps {KEPT:.0%}", head + "</tr>", body)


def _mass_cell(mass: float, is_guess: bool) -> str:
    level = level_of_share(mass)
    css = f"g{level} {'ink' if is_light(level) else 'paper'}{' guess' if is_guess else ''}"
    return f'<td class="{css}">{share(mass)}</td>'


LAYER_COLUMNS = (
    ("layer", "the layer's number"),
    ("structure", "whether the diagonal stands out"),
    ("diagonal", "mean mass of a frame's own tile"),
    ("× chance", "the diagonal over 1/F"),
    ("others", "mean mass of the other tiles"),
    ("ratio", "diagonal over others, with its standard deviation over samples"),
    ("repetition", "mean correlation of tiles on equal lag, with its standard error"),
    ("other lags", "mean correlation of tiles on different lags"),
    ("stable", "the least overlap of positions between prompts, seeds or steps, with its chance level behind"),
    ("entropy", "mean entropy of a row over log N, that of uniform attention"),
    ("text", "mean mass on text"),
    ("heads", "standard deviation of the diagonal over heads"),
    ("guessed mask", "the sparsest candidate that keeps .90 of the mass"),
    ("kept", "share of the tiles that this mask keeps"),
    ("skipped", "share of the tiles that this mask skips"),
    ("site", "the attention site's name in the model"),
)


def layers_table(analysis: Analysis, found: Findings) -> str:
    """Every layer's numbers in one row."""
    columns = [column for column in LAYER_COLUMNS if column[0] != "text" or analysis.grid.text_tokens]
    rows = [row(str(each.layer), layer_cells(each, analysis, found)) for each in analysis.layers]
    return boxed("Numbers of each layer", heading(columns), rows)


def layer_cells(layer: LayerAnalysis, analysis: Analysis, found: Findings) -> list[str]:
    """The cells of a layer's row, in the order of LAYER_COLUMNS."""
    guess = found.guesses[layer.layer]
    mask = TileMask.parse(guess, analysis.grid.frames) if guess else None
    has = layer.layer in found.structured
    return [
        '<span class="mark yes">yes</span>' if has else '<span class="mark no">no</span>',
        share(layer.diagonal),
        times(layer.diagonal / layer.chance),
        share(layer.off_diagonal),
        f"{layer.ratio:.2f} <small>± {layer.ratio_spread:.2f}</small>",
        spread(layer.repetition_mean, layer.repetition_mean_error),
        share(layer.repetition_elsewhere),
        least_stable(layer, analysis),
        share(layer.entropy / layer.uniform_entropy) if layer.uniform_entropy else NONE,
        *([share(mean(layer.text_mass))] if analysis.grid.text_tokens else []),
        share(layer.head_spread),
        guess or "no mask",
        share(mask.kept_share if mask else 1.0),
        share(mask.skipped_share if mask else 0.0),
        f"<code>{escape(layer.site)}</code>",
    ]


def least_stable(layer: LayerAnalysis, analysis: Analysis) -> str:
    """The least overlap of the layer's positions at the first share of mass, and its chance level."""
    mass = stability_mass(analysis)
    told = [stability_at(layer, between, mass) for between in ("prompts", "seeds", "steps") if mass is not None]
    there = [each for each in told if each is not None]
    if not there:
        return NONE
    least = min(there, key=lambda each: each.overlap - each.chance_overlap)
    return f"{share(least.overlap)} <small>chance {share(least.chance_overlap)}</small>"


def stability_table(analysis: Analysis) -> str:
    """All overlaps, folded: a row for each layer, kind of pair and share of mass; empty where none were compared."""
    if not any(each.stability for each in analysis.layers):
        return ""
    columns = [
        ("layer", "the layer's number"),
        ("between", "what differs between two samples"),
        ("mass", "share of the mass that the positions hold"),
        ("overlap", "|S1 n S2| / |S1| with its standard error"),
        ("chance", "overlap of random sets of that size"),
        ("IoU", "|S1 n S2| / |S1 u S2|"),
        ("chance IoU", "IoU of random sets of that size"),
    ]
    rows = [
        row(
            str(layer.layer),
            [
                escape(each.between),
                share(each.mass),
                spread(each.overlap, each.error),
                share(each.chance_overlap),
                share(each.iou),
                share(each.chance_iou),
            ],
        )
        for layer in analysis.layers
        for each in layer.stability
    ]
    table = boxed("Overlap of positions", heading(columns), rows)
    return f'<details class="wide"><summary>All overlaps, at every share of mass</summary>{table}</details>'


def settings(analysis: Analysis) -> str:
    """What was run, where and how long, as a description list."""
    made, grid, machine = analysis.settings, analysis.grid, analysis.settings.machine
    prompts = "".join(f"<li>{escape(prompt)}</li>" for prompt in made.prompts)
    steps = [
        f"{step} (t = {time:.4g}, at {share(at)})"
        for step, time, at in zip(made.steps_seen, made.timesteps, made.at, strict=False)
    ]
    accelerators = "".join(f", {name}" for name in machine.accelerators)
    told = {
        "model": f"{escape(analysis.model)} ({escape(analysis.backbone)})",
        "weights": f"<code>{escape(analysis.weights)}</code>",
        "grid": escape(str(grid)),
        "video": f"{made.video_frames} frames of {made.height} × {made.width} pixels",
        "prompts": f"<ol>{prompts}</ol>",
        "seeds": ", ".join(map(str, made.seeds)),
        "steps seen": f"{', '.join(steps)}; of {made.steps}",
        "sampler": f"{escape(made.scheduler)}, {made.steps} steps, guidance {made.guidance:g}",
        "sampled rows": f"{made.rows} query rows a map, the same places in every frame",
        "tile sums": f"{escape(made.kernel)} on {escape(made.device)}, {escape(made.dtype)}",
        "time": ", ".join(f"{escape(name)} {seconds:.3g} s" for name, seconds in analysis.seconds.items()),
        "peak memory": f"{analysis.peak_memory_bytes / 2**30:.2f} GiB",
        "machine": escape(f"{machine.system}, {machine.processor}, {machine.cores} cores{accelerators}"),
        "versions": ", ".join(escape(f"{name} {version}") for name, version in made.versions.items()),
    }
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in told.items())
