"""A figure becomes a whole PNG file, or none at all."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vdit_cli.artifacts.figure_file import write_png
from vdit_cli.errors import EvditError


def test_a_figure_is_written_as_it_is_drawn(tmp_path: Path) -> None:
    figure = Figure(figsize=(2, 1), dpi=50, facecolor=(1, 0, 0))
    write_png(figure, tmp_path / "red.png")
    with Image.open(tmp_path / "red.png") as picture:
        assert picture.format == "PNG" and picture.size == (100, 50)
        assert np.array(picture.convert("RGB"))[0, 0].tolist() == [255, 0, 0]


def test_a_picture_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "plan.png"
    place.write_bytes(b"before")
    broken = Figure(figsize=(1, 1))
    broken.draw = lambda renderer: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        write_png(broken, place)
    assert place.read_bytes() == b"before" and [each.name for each in tmp_path.iterdir()] == ["plan.png"]


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(EvditError, match=r"file\.txt"):
        write_png(Figure(), tmp_path / "file.txt" / "plan.png")
