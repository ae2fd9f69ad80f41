"""A plan as a PNG: a cell a layer, coloured by its mask's kept share, and the tiles of each different mask. No torch.

Source: Fig. 4 of arXiv 2502.06155 draws the masks of layers this way.
"""

from __future__ import annotations

import math
import string
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from vdit_cli.artifacts.figure_file import write_png
from vdit_cli.search.plan_choice import layers_told
from vdit_cli.tiles.mask import MOST_DRAWN, TileMask
from vdit_cli.tiles.plan import MaskPlan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
LAYERS_A_ROW = 48
"""Longer plans go on in a row below."""
CELL, ROW, TILES, TITLE = 0.3, 0.9, 1.45, 0.2
"""Inches: a layer's width, a row of layers with its numbers, a picture of tiles, and the room around the title."""
LEAST_WIDTH = 6.6
WIDE_CELLS = 16
"""Up to so many layers the picture has its least width, and names need not be turned."""
FOOT = 0.25
LINE = 12
"""Letters of the title to an inch."""


def draw(plan: MaskPlan, path: Path) -> None:
    """Write the picture of a plan to the PNG file `path`."""
    write_png(figure_of(plan), path)


def figure_of(plan: MaskPlan) -> Figure:
    """The picture of a plan, not yet written: layers above, the different masks below, the densest first."""
    from matplotlib.figure import Figure

    distinct = sorted(plan.distinct(), key=lambda mask: (-mask.kept_share, mask.global_frames))
    labels, counts = labels_of(distinct), Counter(plan.masks)
    a_row = min(LAYERS_A_ROW, len(plan.masks))
    width = max(LEAST_WIDTH, CELL * a_row + 1.0)
    across = min(len(distinct), int(width // TILES))
    rows, down = math.ceil(len(plan.masks) / LAYERS_A_ROW), math.ceil(len(distinct) / across)
    title = [part for line in title_of(plan) for part in textwrap.wrap(line, int(width * LINE))]
    head = TITLE + 0.17 * len(title)
    figure = Figure(figsize=(width, head + ROW * rows + (TILES + 0.75) * down + FOOT), dpi=DPI)
    high = figure.get_figheight()
    figure.text(0.5, 1 - 0.12 / high, "\n".join(title), ha="center", va="top", fontsize=9, parse_math=False)
    some = f", of the first {MOST_DRAWN} frames" if plan.grid.frames > MOST_DRAWN else ""
    figure.text(0.5, 0.1 / high, f"tiles: query frames down, key frames across{some}", ha="center", fontsize=7)
    for row in range(rows):
        layers = range(row * LAYERS_A_ROW, min(len(plan.masks), (row + 1) * LAYERS_A_ROW))
        place = (0.5 / width, 1 - (head + ROW * (row + 1) - 0.3) / high, 1 - 1.0 / width, 0.55 / high)
        _draw_layers(figure.add_axes(place), plan, labels, layers, a_row)
    for number, mask in enumerate(distinct):
        left = (width - TILES * across) / 2 + TILES * (number % across) + 0.15
        top = head + ROW * rows + (TILES + 0.75) * (number // across) + 0.7
        place = (left / width, 1 - (top + TILES - 0.3) / high, (TILES - 0.3) / width, (TILES - 0.3) / high)
        _draw_tiles(figure.add_axes(place), mask, labels[mask], counts[mask])
    return figure


def title_of(plan: MaskPlan) -> tuple[str, str]:
    """Model, layers and grid; both shares."""
    kept = f"kept {plan.kept_share:.3f} and skipped {plan.skipped_share:.3f} of the tiles"
    return f"{plan.name}: {layers_told(len(plan.masks))}, {plan.grid}", kept


def labels_of(masks: list[TileMask]) -> dict[TileMask, str]:
    """Each mask's name, with a letter where another one has the same name."""
    count = Counter(mask.name for mask in masks)
    seen: Counter[str] = Counter()
    labels = {}
    for mask in masks:
        seen[mask.name] += 1
        letter = string.ascii_lowercase[(seen[mask.name] - 1) % 26]
        labels[mask] = mask.name if count[mask.name] == 1 else f"{mask.name}{letter}"
    return labels


def colour_of(mask: TileMask) -> tuple[float, float, float]:
    """From dark blue for the sparsest to light yellow for the full mask, by the share of tiles that is kept."""
    from matplotlib import colormaps

    red, green, blue, _ = colormaps["viridis"](0.1 + 0.9 * mask.kept_share)
    return red, green, blue


def _ink(colour: tuple[float, float, float]) -> str:
    """Black or white, whichever reads better."""
    return "black" if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5 else "white"


def _draw_layers(axes: Axes, plan: MaskPlan, labels: dict[TileMask, str], layers: range, a_row: int) -> None:
    """A cell a layer with the mask's name on it, and the numbers of the layers below."""
    from matplotlib.patches import Rectangle

    for place, layer in enumerate(layers):
        mask = plan.masks[layer]
        colour = colour_of(mask)
        axes.add_patch(Rectangle((place, 0), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
        turned = 90 if a_row > WIDE_CELLS else 0
        name = axes.text(place + 0.5, 0.5, labels[mask], ha="center", va="center", fontsize=8, rotation=turned)
        name.set_color(_ink(colour))
    axes.set(xlim=(0, a_row), ylim=(0, 1), yticks=[])
    axes.text(0, -0.13, "layer ", ha="right", va="top", fontsize=7)
    axes.set_xticks([place + 0.5 for place in range(len(layers))], [str(layer) for layer in layers], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_tiles(axes: Axes, mask: TileMask, label: str, layers: int) -> None:
    """The F x F tiles of a mask, queries down and keys across, the kept ones in the colour of its layers."""
    kept = mask.frame_matrix(MOST_DRAWN).tolist()
    colour = colour_of(mask)
    axes.imshow([[colour if keeps else (1.0, 1.0, 1.0) for keeps in row] for row in kept], interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    told = f"{label} in {layers_told(layers)}\nkept {mask.kept_share:.3f}\nskipped {mask.skipped_share:.3f}"
    axes.set_title(told, fontsize=7.5)
