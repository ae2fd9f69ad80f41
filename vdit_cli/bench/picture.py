"""The picture of a benchmark: speed-up against ideal, a line a kernel, from the saved JSON. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.figure_file import write_png

PANEL_INCHES = 4.2
COLUMNS = 3
DPI = 120


def draw(results: Mapping[str, Any], path: Path) -> bool:
    """Write the picture of all timed tables to the PNG file `path`; False, and no file, where nothing was timed."""
    panels = {name: lines_of(table) for name, table in results["tables"].items() if "shape" in table}
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return False
    from matplotlib.figure import Figure

    across = min(COLUMNS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(PANEL_INCHES * across, PANEL_INCHES * down), layout="constrained")
    for place, (name, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(down, across, place)
        most = max(ideal for points in lines.values() for ideal, _ in points)
        axes.plot([1, most], [1, most], color="0.6", linestyle="--", label="ideal")
        axes.axhline(1, color="0.85", linewidth=0.8)
        for kernel, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=kernel)
        axes.set(title=name, xlabel="ideal speed-up (1 / kept share)", ylabel="speed-up over the fastest dense")
        axes.legend(fontsize="small")
    figure.suptitle(f"{results['machine']['kind']}, {results['dtype']}, {results['date']}", fontsize="medium")
    write_png(figure, path)
    return True


def lines_of(table: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """(ideal, speed-up) of the timed masks by kernel, the densest mask first."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in table["rows"]:
        if not row["is_dense"] and row["speedup"] is not None:
            lines.setdefault(row["kernel"], []).append((row["ideal"], row["speedup"]))
    return {kernel: sorted(points) for kernel, points in lines.items()}
