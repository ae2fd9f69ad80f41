"""From the numbers of all trajectories to what is known of each layer.

Letters: J replicates (0 is the number itself, the others leave a group of places out), X samples (one prompt, seed and
step each), L layers, H heads, P sampled places of a frame, F latent frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from vdit_cli.analysis.positions import Agreement, stability
from vdit_cli.analysis.results import Between, LayerAnalysis, Open, Row, Stability
from vdit_cli.analysis.rows import RowSample, jackknife_error, leave_out
from vdit_cli.analysis.trajectory import POSITIONS, UNREADABLE, SampleNumbers, Trajectory, damaged
from vdit_cli.artifacts.tensors import opened
from vdit_cli.tiles.mask import TileMask

LEAST_MASS = 1e-9
"""What off-diagonal tiles are taken to hold at least, so that a ratio is a number."""


@dataclass(frozen=True)
class Layer:
    """A layer's place among those analysed, its number in the model, and its site's name."""

    place: int
    number: int
    site: str


class Everything:
    """All trajectories of an analysis, read from the run's folder."""

    def __init__(self, folder: Path, trajectories: Sequence[Trajectory], steps: int, sample: RowSample) -> None:
        self.folder = folder
        self.trajectories = trajectories
        self.steps = range(steps)
        self.sample = sample
        self.numbers = [SampleNumbers.read(each.file(folder)) for each in trajectories]

    def of_layer(self, name: str, layer: Layer) -> np.ndarray:
        """One of SampleNumbers' tensors for one layer, samples of all trajectories and steps in front, float64."""
        parts = [getattr(each, name)[:, layer.place].double().numpy() for each in self.numbers]
        return np.concatenate(parts)

    def analysed(self, layer: Layer, candidates: Mapping[str, TileMask]) -> LayerAnalysis:
        """Everything that is known of a layer."""
        mass_XHFF, text_XHF = self.of_layer("mass", layer), self.of_layer("text", layer)
        mass_HFF = mass_XHFF.mean(axis=0)
        mass_FF, text_F = mass_HFF.mean(axis=0), text_XHF.mean(axis=(0, 1))
        ratios = [ratio_of(each) for each in mass_XHFF.mean(axis=1)]
        distances = by_distance(mass_FF)
        diagonals_H = mass_HFF.diagonal(axis1=1, axis2=2).mean(axis=1)
        frames = len(mass_FF)
        return LayerAnalysis(
            layer=layer.number,
            site=layer.site,
            heads=len(mass_HFF),
            tile_mass=_rows(mass_FF),
            text_mass=_row(text_F),
            head_tile_mass=tuple(_rows(each) for each in mass_HFF),
            diagonal=distances[0],
            off_diagonal=off_diagonal(mass_FF),
            ratio=ratio_of(mass_FF),
            ratio_spread=float(np.std(ratios, ddof=1)) if len(ratios) > 1 else 0.0,
            ratios=_row(ratios),
            chance=1 / frames,
            by_distance=distances,
            head_spread=float(diagonals_H.std()),
            head_diagonals=_row(diagonals_H),
            kept_mass={name: kept_mass(mass_FF, text_F, mask) for name, mask in candidates.items()},
            uniform_entropy=float(np.log(self.sample.grid.tokens)),
            stability=self.stabilities(layer),
            **self.of_rows(layer),  # type: ignore[arg-type]
        )

    def of_rows(self, layer: Layer) -> dict[str, float | None | Row | Open]:
        """Entropy, the first frame's difference and repetition, each with its error from sampling rows."""
        entropy_P = self.of_layer("entropy_HP", layer).mean(axis=(0, 1))
        first_PF = self.of_layer("first_HPF", layer).mean(axis=(0, 1))
        groups, places = self.sample.groups, len(self.sample.places)
        sizes = np.array([places - len(group) for group in groups])
        with warnings.catch_warnings():
            # Without a single group no places are left, and tiles may have no correlation: NaN, told as None.
            warnings.simplefilter("ignore", RuntimeWarning)
            repetition_JL = np.nanmean(self.of_layer("repetition_HJL", layer), axis=(0, 1))
            entropies = leave_out(entropy_P, groups) / sizes
            firsts_JF = leave_out(first_PF, groups) / sizes[:, None]
        repetition = [None if np.isnan(value) else float(value) for value in repetition_JL[0]]
        errors = [
            None if value is None else self.error(column)
            for value, column in zip(repetition, repetition_JL[1:].T, strict=True)
        ]
        frames = first_PF.shape[1]
        return {
            "entropy": float(entropy_P.mean()),
            "entropy_error": self.error(entropies),
            "first_frame_difference": _row(first_PF.mean(axis=0)),
            "first_frame_error": tuple(self.error(column) for column in firsts_JF.T),
            "repetition": tuple(repetition[:frames]),
            "repetition_error": tuple(errors[:frames]),
            "repetition_mean": repetition[frames],
            "repetition_mean_error": errors[frames],
            "repetition_elsewhere": repetition[frames + 1],
        }

    def error(self, replicates: np.ndarray) -> float | None:
        """The jackknife's standard error over sampled places."""
        return jackknife_error(replicates, len(self.sample.places), self.sample.grid.frame_tokens)

    def stabilities(self, layer: Layer) -> tuple[Stability, ...]:
        """Agreement of the first two prompts, of the first seed with every other, and of steps with the next ones."""
        kept = {(each.prompt, each.seed): each for each in self.trajectories if each.keeps_positions}
        sets = {key: self.positions(each, layer) for key, each in kept.items()}
        base = sets[0, 0]
        pairs: dict[Between, list[Agreement]] = {
            "prompts": [Agreement.count(base[t], sets[1, 0][t]) for t in self.steps if (1, 0) in sets],
            "seeds": [
                Agreement.count(base[t], other[t]) for (_, seed), other in sets.items() if seed for t in self.steps
            ],
            "steps": [
                Agreement.count(each[t], each[after]) for each in sets.values() for t, after in pairwise(self.steps)
            ],
        }
        return tuple(found for between, each in pairs.items() for found in stability(between, each, self.sample))

    def positions(self, trajectory: Trajectory, layer: Layer) -> np.ndarray:
        """A trajectory's packed sets in one layer, (T, M, H, P, F, bytes). Raises EvditError for a damaged file."""
        path = trajectory.positions_file(self.folder)
        try:
            with opened(path, wanted=POSITIONS) as file:
                return file.get_slice("positions")[:, layer.place]
        except UNREADABLE as error:
            raise damaged(path, error) from error


def off_diagonal(mass_FF: np.ndarray) -> float:
    """Mean mass of the tiles off the diagonal."""
    frames = len(mass_FF)
    return float((mass_FF.sum() - np.trace(mass_FF)) / (frames * (frames - 1)))


def ratio_of(mass_FF: np.ndarray) -> float:
    """Mean mass of the diagonal tiles over that of the others, these taken as LEAST_MASS at least."""
    return float(np.trace(mass_FF) / len(mass_FF) / max(off_diagonal(mass_FF), LEAST_MASS))


def by_distance(mass_FF: np.ndarray) -> Row:
    """(F) mean mass of the tiles at each distance |i - j|."""
    frames = len(mass_FF)
    distance = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    return tuple(float(mass_FF[distance == each].mean()) for each in range(frames))


def kept_mass(mass_FF: np.ndarray, text_F: np.ndarray, mask: TileMask) -> float:
    """Share of the video queries' mass that a mask keeps; text is always kept."""
    return float((mass_FF * mask.frame_matrix()).sum() / len(mass_FF) + text_F.mean())


def _row(values: Sequence[float] | np.ndarray) -> Row:
    return tuple(float(value) for value in values)


def _rows(values: np.ndarray) -> tuple[Row, ...]:
    return tuple(_row(each) for each in values)
