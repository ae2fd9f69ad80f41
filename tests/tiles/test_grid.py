"""A grid against tokens written out one by one."""

import pytest
from hypothesis import given

from tests.tiles.strategies import grids
from vdit_cli.tiles.grid import VideoGrid


@given(grids())
def test_tokens_are_text_then_frames_then_text(grid: VideoGrid) -> None:
    """frame_of, frame_range and the counts agree with a list of tokens."""
    tokens: list[int | None] = [None] * grid.text_before
    tokens += [frame for frame in range(grid.frames) for _ in range(grid.rows * grid.cols)]
    tokens += [None] * grid.text_after
    assert [grid.frame_of(token) for token in range(grid.tokens)] == tokens
    assert grid.tokens == len(tokens) == grid.text_tokens + grid.video_tokens
    for frame in range(grid.frames):
        assert list(grid.frame_range(frame)) == [place for place, of in enumerate(tokens) if of == frame]


@pytest.mark.parametrize(
    "sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -1), (1, 1, 1, -1), (1, 1, 1, 0, -2), (1.0, 1, 1), (True, 1, 1), ("8", 1, 1)]
)
def test_what_is_no_grid_is_refused(sizes: tuple) -> None:
    """Sizes below their least, and what is not a whole number."""
    with pytest.raises(ValueError, match="whole number of at least"):
        VideoGrid(*sizes)


@pytest.mark.parametrize("place", [-1, 8])
def test_places_outside_are_refused(place: int) -> None:
    """A negative index does not wrap around."""
    grid = VideoGrid(8, 1, 1)
    with pytest.raises(IndexError):
        grid.frame_of(place)
    with pytest.raises(IndexError):
        grid.frame_range(place)


def test_a_grid_reads_as_words() -> None:
    """The size as errors print it."""
    assert str(VideoGrid(8, 45, 80)) == "8 frames of 45 x 80 tokens"
    assert str(VideoGrid(1, 2, 3, 4, 5)) == "1 frame of 2 x 3 tokens and 9 text tokens"


@pytest.mark.parametrize("name", ["frames", "rows", "cols", "text_before", "text_after"])
def test_a_size_that_no_machine_holds_is_refused(name: str) -> None:
    """Before anything is counted by it."""
    with pytest.raises(ValueError, match=f"{name} is {10**10}: a grid needs a whole number of at most"):
        VideoGrid(**{"frames": 1, "rows": 1, "cols": 1, name: 10**10})
