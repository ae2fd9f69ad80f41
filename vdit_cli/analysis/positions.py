"""How far sets of positions agree between two samples, counted in packed bits.

Letters: M masses, H heads, P sampled places of a frame, F latent frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vdit_cli.analysis.results import Between, Stability
from vdit_cli.analysis.row_statistics import MASSES
from vdit_cli.analysis.rows import RowSample, jackknife_error, leave_out


@dataclass(frozen=True)
class Agreement:
    """Counts of positions for one pair of samples, each (M, H, P): in the first set, in the second, in both."""

    first: np.ndarray
    second: np.ndarray
    both: np.ndarray

    @staticmethod
    def count(one: np.ndarray, other: np.ndarray) -> Agreement:
        """Count the packed sets (M, H, P, F, bytes) of two samples."""
        return Agreement(_ones(one), _ones(other), _ones(one & other))


def _ones(bits: np.ndarray) -> np.ndarray:
    return np.bitwise_count(bits).sum(axis=(-2, -1), dtype=np.int64)


def stability(between: Between, pairs: Sequence[Agreement], sample: RowSample) -> Iterator[Stability]:
    """One `Stability` a mass, means over heads and pairs; nothing without pairs."""
    if not pairs:
        return
    kept = len(sample.keys[0]) * sample.grid.frames
    for index, mass in enumerate(MASSES):
        # (P, pairs, H) of the first set, the second and both.
        first, second, both = (
            np.stack([getattr(pair, name)[index] for pair in pairs]).transpose(2, 0, 1)
            for name in ("first", "second", "both")
        )
        whole = _shares(first.sum(0), second.sum(0), both.sum(0), kept * len(first))
        left = [leave_out(counts, sample.groups) for counts in (first, second, both)]
        # The overlap does not ask for the number of positions.
        without = [_shares(one, other, shared, kept)["overlap"] for one, other, shared in zip(*left, strict=True)]
        error = jackknife_error(without, len(sample.places), sample.grid.frame_tokens)
        yield Stability(between=between, mass=mass, error=error, **whole)


def _shares(first: np.ndarray, second: np.ndarray, both: np.ndarray, positions: int) -> dict[str, float]:
    """Means over pairs and heads of overlap, intersection over union and both chance levels, from counts."""
    one, other = first / positions, second / positions
    chance_both = one * other
    return {
        # A set may have none of the compared keys where a row is longer than they are: no overlap then.
        "overlap": float((both / np.maximum(first, 1)).mean()),
        "iou": float((both / np.maximum(first + second - both, 1)).mean()),
        "chance_overlap": float(other.mean()),
        "chance_iou": float((chance_both / np.maximum(one + other - chance_both, 1e-12)).mean()),
    }
