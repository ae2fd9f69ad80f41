"""Tile masks against the printed table of the paper and against masks written out pair by pair."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.closeness import assert_close
from tests.tiles.strategies import masks, masks_on_grids
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import FAMILIES, TileMask, family_masks, nearest_names

PAPER = [  # frames, mask, stride, skipped 128 x 128 blocks in per cent; Table 1 of arXiv 2502.06155
    (8, "4:4", 2, 17.60),
    (8, "3:5", 3, 29.88),
    (8, "2:6", 4, 45.47),
    (8, "1:7", 8, 64.38),
    (24, "12:12", 2, 21.51),
    (24, "8:16", 3, 40.30),
    (24, "6:18", 4, 51.88),
    (24, "4:20", 6, 64.98),
    (24, "3:21", 8, 72.05),
]


def pairs_by_hand(mask: TileMask, grid: VideoGrid) -> np.ndarray:
    """The (N, N) mask from its definition, pair by pair."""
    frames = [grid.frame_of(token) for token in range(grid.tokens)]
    everyone = {None, *mask.global_frames}
    return np.array([[i == j or i in everyone or j in everyone for j in frames] for i in frames])


@pytest.mark.parametrize(("frames", "name", "stride", "skipped"), PAPER)
def test_the_papers_table(frames: int, name: str, stride: int, skipped: float) -> None:
    """Stride and block sparsity at 720p, 3600 tokens a frame, to the two printed decimals."""
    mask = TileMask.parse(name, frames)
    assert mask == TileMask.from_stride(frames, stride)
    assert round(100 * (1 - mask.kept_block_share(VideoGrid(frames, 45, 80))), 2) == skipped


@pytest.mark.numerical
@given(masks_on_grids(), st.integers(1, 7))
def test_shares_are_those_of_the_mask_written_out(case: tuple[TileMask, VideoGrid], block: int) -> None:
    """Tiles, pairs and blocks, text included, counted on the (F, F) and the (N, N) mask."""
    mask, grid = case
    tiles, pairs = mask.frame_matrix(), pairs_by_hand(mask, grid)
    assert (mask.token_mask(grid) == pairs).all()
    assert tiles.tolist() == [[mask.keeps(i, j) for j in range(mask.frames)] for i in range(mask.frames)]
    assert mask.kept_tiles == tiles.sum()
    assert mask.kept_share == tiles.mean()
    skipped = 1 - tiles.mean()
    assert_close(mask.skipped_share, skipped, planted=skipped + 1 / tiles.size, told="a tile too many")
    assert_close(mask.kept_pair_share(grid), pairs.mean(), atol=1e-12)
    padded = np.pad(pairs, [(0, -grid.tokens % block)] * 2)
    counts = padded.reshape(len(padded) // block, block, len(padded) // block, block)
    assert_close(mask.kept_block_share(grid, block), counts.any((1, 3)).mean(), atol=1e-12)
    assert mask.is_dense == bool(tiles.all())


@given(st.integers(1, 40), st.integers(1, 50))
def test_a_name_means_the_smallest_stride(frames: int, stride: int) -> None:
    """parse(name) is the mask of the first stride that gives as many global frames."""
    mask = TileMask.from_stride(frames, stride)
    assert len(mask.global_frames) == -(-frames // stride)
    smallest = next(s for s in range(1, stride + 1) if -(-frames // s) == len(mask.global_frames))
    assert TileMask.parse(mask.name, frames) == TileMask.from_stride(frames, smallest)


@given(st.sampled_from(sorted(FAMILIES)), st.integers(1, 30))
def test_every_family_names_masks_that_parse(family: str, frames: int) -> None:
    """Each mask of a family has the k that was asked for and comes back from its name; the full mask is one of them."""
    found = family_masks(frames, family)
    assert TileMask.dense(frames) in found
    assert [len(mask.global_frames) for mask in found] == sorted({len(mask.global_frames) for mask in found})
    for mask in found:
        assert TileMask.parse(f"{family}/{mask.name}", frames) == mask


def test_the_full_mask() -> None:
    """`F:0` keeps everything; so does a mask with one frame that is not global."""
    assert TileMask.parse("8:0", 8) == TileMask.dense(8) == TileMask.from_stride(8, 1)
    assert TileMask.dense(8).kept_share == 1 and TileMask.dense(8).is_dense
    assert TileMask(3, (0, 2)).is_dense and not TileMask(3, (0,)).is_dense
    assert TileMask.parse("1:0", 1) == TileMask(1, (0,))


@pytest.mark.parametrize(
    ("name", "rule", "steps"),
    [
        ("7:1", "no mask of 7 global frames", ("8:0", "4:4", "3:5")),
        ("0:8", "no mask of 0 global frames", ("1:7", "2:6", "3:5")),
        ("2:5", "is for 7 frames", ("2:6", "1:7", "3:5")),
        ("12:12", "is for 24 frames", ("8:0", "4:4", "3:5")),
        ("1:999999999", "is for 1000000000 frames", ("1:7", "2:6", "3:5")),
        *[
            (name, "a mask is k:m", ("1:7", "2:6", "3:5"))
            for name in ("", "2", "a:b", "2:6:1", "-1:9", "٢:٦", "1:7\n2")
        ],
        ("local/2:6", "unknown mask family 'local'", ("strided",)),
    ],
)
def test_other_names_are_refused_with_the_nearest(name: str, rule: str, steps: tuple[str, ...]) -> None:
    """The rule, the origin and names to paste."""
    with pytest.raises(EvditError, match=rule) as caught:
        TileMask.parse(name, 8, where="--masks")
    assert caught.value.next_steps == steps
    assert (caught.value.where, caught.value.exit_code) == ("--masks", USAGE)


@pytest.mark.parametrize(
    ("frames", "global_frames"),
    [
        (0, (0,)),
        (-1, (0,)),
        (8, ()),
        (8, (8,)),
        (8, (-1,)),
        (8, (0, 0)),
        (8, (0.0,)),
        (8, (True,)),
        (8, ("0",)),
        (8.0, (0,)),
    ],
)
def test_what_is_no_mask_is_refused(frames: int, global_frames: tuple) -> None:
    """No frames, no global frame, out of range, twice, not whole numbers."""
    with pytest.raises(ValueError, match="frame"):
        TileMask(frames, global_frames)


def test_a_stride_below_one_and_another_grid_are_refused() -> None:
    """Mistakes in a program, not of a person."""
    with pytest.raises(ValueError, match="stride 0"):
        TileMask.from_stride(8, 0)
    with pytest.raises(ValueError, match="does not fit a grid of 7 frames"):
        TileMask.dense(8).kept_pair_share(VideoGrid(7, 1, 1))


@given(masks(5), masks(5))
def test_masks_are_values(one: TileMask, other: TileMask) -> None:
    """Equal by frames and global frames in any order, and then equal as keys."""
    assert (one == other) == (set(one.global_frames) == set(other.global_frames))
    assert {TileMask(one.frames, one.global_frames[::-1]): 1}[one] == 1


def test_nearest_names_prefer_the_distance_in_global_frames() -> None:
    """Of the masks that exist, the nearest in k first."""
    assert nearest_names(24, 10) == ["8:16", "12:12", "6:18"]
