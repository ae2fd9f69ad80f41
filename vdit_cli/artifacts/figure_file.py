"""Write a figure as a PNG, without a display, so that a file is whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vdit_cli.artifacts.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure to the PNG file `path`. Raises EvditError where it can't be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with replacing(path) as beside:
        FigureCanvasAgg(figure).print_png(str(beside))
