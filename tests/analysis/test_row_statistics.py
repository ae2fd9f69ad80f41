"""Numbers of sampled rows against the same numbers of the whole float64 map, taken row by row with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.analysis.planted import dense_shares, planted
from tests.closeness import assert_close, assert_within
from vdit_cli.analysis import rows as drawing
from vdit_cli.analysis.positions import Agreement, stability
from vdit_cli.analysis.row_statistics import MASSES, row_numbers
from vdit_cli.analysis.rows import draw_rows, jackknife_error, leave_out
from vdit_cli.tiles.grid import VideoGrid

pytestmark = pytest.mark.numerical

GRID = VideoGrid(3, 4, 6, text_before=2, text_after=3)


def qk(seed: int = 0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(GRID.tokens, 2, 24, generator=random) * 2 for _ in range(2)]


def unpacked(bits: np.ndarray, kept: int) -> np.ndarray:
    return np.unpackbits(bits, axis=-1, bitorder="little")[..., :kept].astype(bool)


def test_rows_are_the_same_places_of_every_frame():
    """As many in each frame, drawn without repeats, the same for the same seed; never more than there are."""
    sample = draw_rows(GRID, 30)
    assert len(sample.places) == len(set(sample.places)) == 10 and sample.rows == 30
    tokens = sample.tokens()
    assert tokens.shape == (10, 3)
    assert [GRID.frame_of(int(token)) for token in tokens[4]] == [0, 1, 2]
    assert np.array_equal(np.diff(tokens, axis=1), np.full((10, 2), GRID.frame_tokens))
    assert draw_rows(GRID, 30) == sample != draw_rows(GRID, 30, seed=1)
    assert draw_rows(GRID, 10_000).rows == GRID.video_tokens and draw_rows(GRID, 1).rows == 3
    assert [place for group in sample.groups for place in group] == list(range(10))


def test_entropy_and_the_first_frames_difference():
    """-sum p log p, and the mean absolute difference of tiles (0, j) and (0, 0), of the sampled rows."""
    sample = draw_rows(GRID, 30)
    q, k = qk()
    shares = dense_shares(q, k)
    found = row_numbers(q, k, sample)
    rows = shares[:, sample.tokens()]  # (H, P, F, N)
    entropy = -(rows * np.log(rows)).sum(-1).mean(-1)
    assert_close(found.entropy_HP, entropy, atol=1e-4)
    tiles = [rows[:, :, 0, GRID.frame_range(j).start : GRID.frame_range(j).stop] for j in range(GRID.frames)]
    assert_close(found.first_HPF, np.stack([np.abs(tile - tiles[0]).mean(-1) for tile in tiles], -1), atol=1e-6)


def test_repetition_is_the_mean_correlation_of_tiles_on_equal_lag():
    """Every pair of tiles by numpy's own correlation; each replicate leaves one group of places out."""
    sample = draw_rows(GRID, 30)
    q, k = qk()
    rows = dense_shares(q, k)[:, sample.tokens()]
    found = row_numbers(q, k, sample).repetition_HJL
    assert found.shape == (2, 1 + len(sample.groups), GRID.frames + 2)
    everything = list(range(10))
    for replicate, places in enumerate([everything, [p for p in everything if p not in sample.groups[0]]]):
        for head in range(2):
            tiles = {
                (i, j): rows[head][places][:, i, GRID.frame_range(j).start : GRID.frame_range(j).stop].ravel()
                for i in range(3)
                for j in range(3)
            }
            bins: dict[int, list[float]] = {0: [], 1: [], 2: [], 3: []}
            names = list(tiles)
            for a, one in enumerate(names):
                for other in names[a + 1 :]:
                    lags = one[1] - one[0], other[1] - other[0]
                    where = abs(lags[0]) if lags[0] == lags[1] else 3
                    bins[where].append(float(np.corrcoef(tiles[one], tiles[other])[0, 1]))
            true = [np.mean(bins[0]), np.mean(bins[1]), np.mean(bins[0] + bins[1]), np.mean(bins[3])]
            assert_close(found[head, replicate, [0, 1, 3, 4]], true, atol=1e-4)
            assert np.isnan(found[head, replicate, 2])


def test_tiles_without_spread_have_no_correlation():
    """Uniform attention: equal up to float32 noise, so nothing is told; planted places repeat exactly."""
    grid = VideoGrid(4, 4, 4)
    sample = draw_rows(grid, 32)
    assert row_numbers(*planted("uniform", grid, 0), sample).repetition_HJL.isnan().all()
    repeated = row_numbers(*planted("bands", grid, 0), sample).repetition_HJL
    assert_close(repeated[:, 0, [0, 1, 2, 4, 5]], torch.ones(2, 5, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("most_keys", [4096, 20])
def test_positions_are_the_smallest_sets_that_hold_the_mass(most_keys: int, monkeypatch: pytest.MonkeyPatch):
    """By a greedy choice over the sorted shares of all sampled rows; fewer keys compared are those of the same set."""
    monkeypatch.setattr(drawing, "KEYS", most_keys)
    sample = draw_rows(GRID, 30)
    q, k = qk()
    rows = dense_shares(q, k)[:, sample.tokens()]
    kept = len(sample.keys[0])
    assert kept == min(most_keys, GRID.tokens)
    found = unpacked(row_numbers(q, k, sample).positions.numpy(), kept)
    for level, mass in enumerate(MASSES):
        for head in range(2):
            order = np.argsort(-rows[head].ravel())
            count = 1 + np.searchsorted(np.cumsum(rows[head].ravel()[order]), mass * rows[head].sum())
            chosen = np.zeros(rows[head].size, dtype=bool)
            chosen[order[:count]] = True
            chosen = chosen.reshape(rows[head].shape)
            true = np.stack([chosen[place][:, keys] for place, keys in enumerate(sample.keys)])
            errors = [(x != true).mean() for x in (found[level, head], np.roll(true, 1, axis=0))]
            assert_within(errors[0], 0.01, planted=errors[1], told="moved by one place")


def test_agreement_of_two_samples():
    """Overlap, union and both chance levels, by counting booleans; errors from leaving groups of places out."""
    sample = draw_rows(GRID, 30)
    sets = [row_numbers(*qk(seed), sample).positions.numpy() for seed in (0, 1)]
    one, other = (unpacked(each, GRID.tokens) for each in sets)
    for level, found in enumerate(stability("prompts", [Agreement.count(*sets)], sample)):
        a, b = one[level].reshape(2, -1), other[level].reshape(2, -1)
        assert found.mass == MASSES[level] and found.between == "prompts"
        assert_close(found.overlap, np.mean((a & b).sum(1) / a.sum(1)))
        assert_close(found.iou, np.mean((a & b).sum(1) / (a | b).sum(1)))
        assert_close(found.chance_overlap, b.mean())
        assert_close(found.overlap, found.chance_overlap, atol=0.07, planted=1)
        assert_close(found.iou, found.chance_iou, atol=0.07, planted=1)
        assert 0 < found.error < 0.05
    assert list(stability("seeds", [], sample)) == []


def test_equal_density_gives_the_known_chance():
    """d / (2 - d) for two sets of density d, here one half."""
    sample = draw_rows(VideoGrid(2, 2, 4), 16)
    one = np.full((3, 1, 8, 2, 2), 0b01010101, dtype=np.uint8)
    other = np.full((3, 1, 8, 2, 2), 0b00110011, dtype=np.uint8)
    found = next(stability("steps", [Agreement.count(one, other)], sample))
    assert_close((found.overlap, found.iou), (0.5, 1 / 3))
    assert_close((found.chance_overlap, found.chance_iou), (0.5, 0.5 / 1.5))
    assert found.error == 0.0  # every place was sampled


def test_the_jackknife_knows_the_error_of_a_mean():
    """std / sqrt(n) with the correction for a finite population; nothing for one group, 0 for all places."""
    values = np.random.default_rng(0).normal(size=8)
    left = leave_out(values, [range(i, i + 1) for i in range(8)]) / 7
    true = values.std(ddof=1) / np.sqrt(8)
    assert_close(jackknife_error(left, 8, 10**9), true, rtol=1e-7)
    assert_close(jackknife_error(left, 8, 16), true * np.sqrt(0.5))
    assert jackknife_error(left[:1], 1, 16) is None and jackknife_error(left, 8, 8) == 0.0
