"""Pictures of fronts and of plans: what stands on them, and that no text lies on another or leaves the picture."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from tests.search.made import MASKS, table_of
from vdit_cli.search import front_picture, plan_picture
from vdit_cli.search.candidates import in_order
from vdit_cli.search.mask_costs import kept_shares
from vdit_cli.search.pareto import pareto
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

LONG = tuple(mask for k in range(1, 25) if (mask := TileMask.from_stride(24, k)))


def _texts(figure: Figure) -> list[Text]:
    """The texts that are drawn: an axis holds numbers beyond its ends, too."""
    drawn: list[Text] = []
    draw = Text.draw

    def noted(self: Text, renderer: object) -> None:
        drawn.append(self)
        draw(self, renderer)

    with patch.object(Text, "draw", noted):
        FigureCanvasAgg(figure).draw()
    return [each for each in dict.fromkeys(drawn) if each.get_visible() and each.get_text().strip()]


def _check_text(figure: Figure) -> None:
    """No text on another one, and all of it inside."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in _texts(figure)]
    width, height = figure.bbox.size
    for told, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{told!r} leaves the picture"
    for (told, box), (other, below) in combinations(boxes, 2):
        assert not box.overlaps(below), f"{told!r} lies on {other!r}"


def _plan(layers: int, masks: tuple[TileMask, ...], name: str = "shapes") -> MaskPlan:
    frames = masks[0].frames
    return MaskPlan(name, VideoGrid(frames, 30, 40), tuple(masks[i % len(masks)] for i in range(layers)))


@pytest.mark.parametrize("layers", [1, 8, 16, 17, 42, 48, 100])
@pytest.mark.parametrize("masks", [MASKS, LONG], ids=["8", "24"])
def test_no_text_of_a_plan_lies_on_another(layers, masks):
    _check_text(plan_picture.figure_of(_plan(layers, masks, "a model of $1 and $2, " * 5)))


def test_a_check_sees_text_that_lies_on_another():
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    figure.text(0.51, 0.5, "two")
    with pytest.raises(AssertionError, match="lies on"):
        _check_text(figure)


def test_every_layer_has_a_cell_of_its_mask_and_every_mask_its_tiles():
    plan = _plan(42, MASKS[1:])
    figure = plan_picture.figure_of(plan)
    layers, *tiles = figure.axes
    cells = [each for each in layers.patches if isinstance(each, Rectangle)]
    assert [text.get_text() for text in layers.texts[:42]] == [mask.name for mask in plan.masks]
    assert [tick.get_text() for tick in layers.get_xticklabels()] == [str(layer) for layer in range(42)]
    assert len(tiles) == 3
    for axes, mask in zip(tiles, MASKS[1:], strict=True):  # the densest first
        colour = to_rgb(cells[plan.masks.index(mask)].get_facecolor())
        picture = np.asarray(axes.images[0].get_array())
        kept = [[bool((picture[i, j] == colour).all()) for j in range(8)] for i in range(8)]
        assert kept == [[mask.keeps(i, j) for j in range(8)] for i in range(8)]
        share = f"kept {mask.kept_tiles / 64:.3f}\nskipped {1 - mask.kept_tiles / 64:.3f}"
        assert axes.get_title() == f"{mask.name} in 14 layers\n{share}"
    assert len({cell.get_facecolor() for cell in cells}) == 3


def test_a_long_plan_goes_on_in_a_row_below():
    first, second, third, *_ = plan_picture.figure_of(_plan(100, MASKS)).axes
    assert [len(axes.patches) for axes in (first, second, third)] == [48, 48, 4]
    assert [tick.get_text() for tick in third.get_xticklabels()] == ["96", "97", "98", "99"]


def test_masks_of_one_name_are_told_apart():
    masks = [TileMask(8, (0, 4)), TileMask(8, (0, 7)), TileMask(8, (0,))]
    assert list(plan_picture.labels_of(masks).values()) == ["2:6a", "2:6b", "1:7"]


def _front(layers: int, masks: tuple[TileMask, ...], plan: bool = True):
    drawn = np.random.default_rng(0).random((layers, len(masks) - 1)).cumsum(axis=1)
    table = table_of(np.concatenate([np.zeros((layers, 1)), drawn], axis=1), masks=masks)
    chosen = MaskPlan("shapes", table.grid, (masks[1],) * layers) if plan else None
    return pareto(table, "attention", kept_shares(masks), chosen)


@pytest.mark.parametrize("layers", [1, 8, 42])
@pytest.mark.parametrize("masks", [MASKS, in_order(LONG, 24)], ids=["4", "many"])
def test_no_text_of_a_front_lies_on_another(layers, masks):
    _check_text(front_picture.figure_of(_front(layers, masks)))


def test_a_front_has_a_point_a_plan():
    found = _front(8, MASKS)
    axes = front_picture.figure_of(found).axes[0]
    sweep, front, uniform, chosen = axes.lines
    kept = [sum(mask.kept_share for mask in found.front.masks(k)) / 8 for k in range(len(found.front))]
    assert np.array_equal(np.asarray(front.get_xdata()), found.front.costs / 8) and len(kept) == len(front.get_xdata())
    assert np.array_equal(np.asarray(front.get_ydata()), found.front.losses)
    assert len(sweep.get_xdata()) == len(found.sweep)
    assert list(uniform.get_xdata()) == [mask.kept_share for mask in MASKS]
    assert list(chosen.get_xdata()) == [MASKS[1].kept_share]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"{len(found.sweep)} plans of a threshold, at every r",
        f"{len(found.front)} plans that no other beats",
        "uniform masks",
        "the chosen plan",
    ]
    assert len(front_picture.figure_of(_front(8, MASKS, plan=False)).axes[0].lines) == 3


def test_a_large_front_is_thinned_and_says_so(monkeypatch):
    monkeypatch.setattr(front_picture, "MOST_DRAWN", 5)
    found = _front(8, MASKS)
    axes = front_picture.figure_of(found).axes[0]
    assert len(axes.lines[1].get_xdata()) == 5
    told = f"{len(found.front)} plans that no other beats, 5 of them drawn"
    assert front_picture.thinning(found) == told == axes.get_legend().get_texts()[1].get_text()


def test_names_of_uniform_masks_that_have_no_room_are_counted(monkeypatch):
    monkeypatch.setattr(front_picture, "NAME_ROOM", 0.5)
    figure = front_picture.figure_of(_front(8, MASKS))
    told = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert "uniform masks, 2 of 4 named above" in told
    assert [text.get_text() for text in _texts(figure) if text.get_text() in {m.name for m in MASKS}] == ["2:6", "8:0"]


def test_files_are_pngs(tmp_path: Path):
    plan_picture.draw(_plan(8, MASKS), tmp_path / "plan.png")
    front_picture.draw(_front(8, MASKS), tmp_path / "front.png")
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("plan.png", "front.png"))
