"""Passes against the mask they stand for: each kept pair once, and nothing else."""

from random import Random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tiles.strategies import masks_on_grids
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import Pass, passes, token_order


def pairs_of(each: Pass, tokens: int) -> np.ndarray:
    """How often a pass computes each pair, as (N, N) counts, cut into its parts the slow way."""
    counts = np.zeros((tokens, tokens), dtype=int)
    for keys in each.keys:
        for part in range(each.parts):
            own_queries = np.array_split(np.array(each.queries), each.parts)[part]
            own_keys = np.array_split(np.array(keys), each.parts)[part]
            counts[np.ix_(own_queries, own_keys)] += 1
    return counts


@given(masks_on_grids())
@example((TileMask(1, (0,)), VideoGrid(1, 1, 1)))
@example((TileMask.parse("1:7", 8), VideoGrid(8, 2, 3, 0, 2)))
@example((TileMask(4, (3,)), VideoGrid(4, 1, 1, 1, 0)))
def test_passes_compute_each_kept_pair_once(case: tuple[TileMask, VideoGrid]) -> None:
    """At most three passes; their counts, put back in the grid's order, are the token mask itself."""
    mask, grid = case
    found = passes(mask, grid)
    assert len(found) <= 3
    places = np.concatenate([np.array(places) for places in token_order(mask, grid)])
    if mask.is_dense:
        places = np.arange(grid.tokens)
    assert sorted(places) == list(range(grid.tokens))
    counts = np.zeros((grid.tokens, grid.tokens), dtype=int)
    counts[np.ix_(places, places)] = sum(pairs_of(each, grid.tokens) for each in found)
    assert (counts == mask.token_mask(grid)).all()
    assert sum(each.pairs for each in found) == mask.token_mask(grid).sum()


@given(masks_on_grids())
def test_passes_of_equal_queries_follow_each_other(case: tuple[TileMask, VideoGrid]) -> None:
    """What the joining needs: queries come in order and are the same range or a disjoint one."""
    queries = list(dict.fromkeys(each.queries for each in passes(*case)))
    assert [place for rows in queries for place in rows] == list(range(case[1].tokens))


def test_nothing_is_gathered_where_global_frames_are_a_prefix() -> None:
    """1:7 without text, and with text before."""
    mask = TileMask.parse("1:7", 8)
    assert token_order(mask, VideoGrid(8, 4, 4)) == (range(128),)
    assert token_order(mask, VideoGrid(8, 4, 4, text_before=5)) == (range(133),)


def test_the_order_of_2_6_with_text_after() -> None:
    """Global frames, then text, then the others, as the fewest ranges."""
    order = token_order(TileMask.parse("2:6", 8), VideoGrid(8, 1, 2, text_after=3))
    assert order == (range(2), range(8, 10), range(16, 19), range(2, 8), range(10, 16))


@given(masks_on_grids(), st.randoms(use_true_random=False))
def test_frames_held_in_another_order(case: tuple[TileMask, VideoGrid], random: Random) -> None:
    """Wherever frames lie, the order takes text and global frames first and each token once."""
    mask, grid = case
    held = list(range(grid.frames))
    random.shuffle(held)
    places = [place for piece in token_order(mask, grid, tuple(held)) for place in piece]
    assert sorted(places) == list(range(grid.tokens))
    frames = [grid.frame_of(place) for place in places]
    is_everyone = [place is None or held[place] in mask.global_frames for place in frames]
    assert is_everyone == sorted(is_everyone, reverse=True)


def test_what_is_no_order_is_refused() -> None:
    """A frame left out, one named twice."""
    for order in ((0, 1), (0, 1, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match="no order of 3 frames"):
            token_order(TileMask.dense(3), VideoGrid(3, 1, 1), order)


def test_a_grid_of_other_frames_is_refused() -> None:
    """A mistake in a program."""
    with pytest.raises(ValueError, match="does not fit"):
        passes(TileMask.dense(8), VideoGrid(7, 1, 1))
