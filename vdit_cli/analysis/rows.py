"""Which query rows of a map are looked at element by element, and the sampling error that this leaves.

Letters: F latent frames, S tokens a frame, N tokens, P places sampled in a frame, the same ones in every frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vdit_cli.tiles.grid import VideoGrid

KEYS = 4096
"""Most keys of a row whose place in a set of positions is kept for comparing it with others."""
GROUPS = 8
"""Most groups of places that a jackknife leaves out in turn."""


@dataclass(frozen=True)
class RowSample:
    """Sampled query rows of `grid`: the same `places` of each frame, so that tiles can be compared element by element.

    `keys` holds for each place the tokens (numbers 0..N-1) at which sets of positions are compared.
    """

    grid: VideoGrid
    places: tuple[int, ...]
    keys: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Sampled query rows of a map, F * P."""
        return len(self.places) * self.grid.frames

    @property
    def groups(self) -> list[range]:
        """The places, by their order here, in up to GROUPS groups of nearly equal size."""
        count = min(GROUPS, len(self.places))
        edges = [len(self.places) * each // count for each in range(count + 1)]
        return [range(start, stop) for start, stop in zip(edges, edges[1:], strict=False)]

    def tokens(self) -> np.ndarray:
        """Token numbers of the rows, (P, F)."""
        starts = self.grid.text_before + np.arange(self.grid.frames) * self.grid.frame_tokens
        return np.asarray(self.places)[:, None] + starts[None, :]


def draw_rows(grid: VideoGrid, rows: int, seed: int = 0) -> RowSample:
    """About `rows` query rows, as many in each frame and at least one: ceil(rows / F) places drawn without repeats.

    The draw depends on the grid, `rows` and `seed` only, so all samples of an analysis have the same rows.
    """
    random = np.random.default_rng(seed)
    count = min(grid.frame_tokens, max(1, math.ceil(rows / grid.frames)))
    # A permutation's beginning is a sample without repeats; sorted within its jackknife groups nothing would be random.
    places = tuple(int(place) for place in random.permutation(grid.frame_tokens)[:count])
    kept = min(KEYS, grid.tokens)
    keys = tuple(tuple(sorted(int(key) for key in random.permutation(grid.tokens)[:kept])) for _ in places)
    return RowSample(grid, places, keys)


def jackknife_error(replicates: Sequence[float] | np.ndarray, places: int, population: int) -> float | None:
    """Standard error of a number from its values with one group of places left out in turn.

    `places` of `population` were sampled without repeats: none is left to err about where they are all. None for
    fewer than two groups or a value that is not finite. Source: Efron and Stein, Ann. Statist. 9 (1981), with the
    finite population correction sqrt(1 - places / population).
    """
    values = np.asarray(replicates, dtype=np.float64)
    if places >= population:
        return 0.0
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    spread = (len(values) - 1) / len(values) * float(np.square(values - values.mean()).sum())
    return math.sqrt(spread * (1 - places / population))


def leave_out(sums_P: np.ndarray, groups: Sequence[range]) -> np.ndarray:
    """Sums over the first axis (P places) with one group left out in turn, (groups, ...)."""
    total = sums_P.sum(axis=0)
    return np.stack([total - sums_P[group.start : group.stop].sum(axis=0) for group in groups])
