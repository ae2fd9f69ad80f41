"""Random grids, masks and plans for property tests."""

from hypothesis import strategies as st

from vdit_cli.reader import MOST
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan


@st.composite
def masks(draw: st.DrawFn, frames: int | None = None, most: int = 9) -> TileMask:
    """Any mask of up to `most` frames, by any set of global frames."""
    frames = draw(st.integers(1, most)) if frames is None else frames
    return TileMask(frames, tuple(draw(st.sets(st.integers(0, frames - 1), min_size=1))))


@st.composite
def grids(draw: st.DrawFn, frames: int | None = None, most: int = 4) -> VideoGrid:
    """Any small grid, with and without text."""
    frames = draw(st.integers(1, 9)) if frames is None else frames
    sizes = draw(st.tuples(st.integers(1, most), st.integers(1, most), st.integers(0, 3), st.integers(0, 3)))
    return VideoGrid(frames, *sizes)


@st.composite
def masks_on_grids(draw: st.DrawFn) -> tuple[TileMask, VideoGrid]:
    """A mask and a grid of as many frames."""
    mask = draw(masks())
    return mask, draw(grids(mask.frames))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def plans(draw: st.DrawFn) -> MaskPlan:
    """Any plan of up to six layers."""
    grid = draw(grids())
    layers = tuple(draw(st.lists(masks(grid.frames), min_size=1, max_size=6)))
    architecture = st.builds(Architecture, st.text(), st.just(len(layers)), st.integers(1, MOST), st.integers(1, MOST))
    return MaskPlan(
        draw(st.text(min_size=1)),
        grid,
        layers,
        draw(st.none() | st.text(st.sampled_from("0123456789abcdef"), min_size=64, max_size=64)),
        draw(st.dictionaries(st.text(), json_values, max_size=3)),
        draw(st.dictionaries(st.text(), json_values, max_size=3)),
        draw(st.none() | architecture),
    )
