"""What an analysis found, as plain frozen data, and its file `analysis.json`. No torch.

Letters: F latent frames, S tokens a frame, N tokens, H heads. A *sample* is one prompt, seed and step. Mass is
attention after the softmax; a tile's mass is P[i, j] = (1/S) * the sum over queries of frame i and keys of frame j, so
that a row of P and that frame's `text_mass` add up to 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.receipt import Machine
from vdit_cli.reader import read
from vdit_cli.tiles.grid import VideoGrid

SCHEMA = "evdit.analysis/1"
FILE = "analysis.json"

Between = Literal["prompts", "seeds", "steps"]
Row = tuple[float, ...]
"""F numbers, one a frame or a distance."""
Open = tuple[float | None, ...]
"""F numbers, None where there is none: tiles without any spread, a distance that only one tile has."""


@dataclass(frozen=True)
class Stability:
    """How far the smallest sets of positions that hold `mass` of the sampled rows agree between two samples.

    Means over heads and pairs of samples: `overlap` |S1 n S2| / |S1|, `iou` |S1 n S2| / |S1 u S2|, and what sets of
    these sizes, drawn at random, would have: `chance_overlap` (the density d of S2), `chance_iou` (d / (2 - d) for two
    of density d). `error` is the standard error of `overlap` from sampling rows, None for too few rows.
    """

    between: Between
    mass: float
    overlap: float
    iou: float
    chance_overlap: float
    chance_iou: float
    error: float | None


@dataclass(frozen=True)
class LayerAnalysis:
    """One layer: exact numbers from tile masses, and numbers from sampled query rows with their standard errors.

    Errors are those of sampling rows: None where too few rows were sampled, 0 where all were.
    """

    layer: int
    site: str
    """The attention site's name in the model."""
    heads: int
    tile_mass: tuple[Row, ...]
    """P (F x F), mean over heads and samples."""
    text_mass: Row
    """(F) mass that a frame's queries give to text; 0 for a model whose self-attention holds none."""
    head_tile_mass: tuple[tuple[Row, ...], ...]
    """P of each head (H x F x F), mean over samples."""
    diagonal: float
    """Mean of P[i, i]."""
    off_diagonal: float
    """Mean of P[i, j] over i != j."""
    ratio: float
    """diagonal / off_diagonal; 1 for uniform attention."""
    ratio_spread: float
    """Standard deviation of the ratio over samples; 0 for one sample."""
    ratios: tuple[float, ...]
    """The ratio of each sample, in the order of `Analysis.samples`."""
    chance: float
    """1 / F: the mass of each tile under uniform attention without text."""
    by_distance: Row
    """(F) mean of P[i, j] over |i - j| = d."""
    first_frame_difference: Row
    """(F) mean |A[0, j] - A[0, 0]| over a tile's elements; mean A[0, 0] itself is tile_mass[0][0] / S."""
    first_frame_error: Open
    repetition: Open
    """(F) mean correlation between tiles of one lag j - i, by |lag|; lag F - 1 has one tile a sign, so None."""
    repetition_error: Open
    repetition_mean: float | None
    """Mean correlation over all pairs of tiles on equal lag."""
    repetition_mean_error: float | None
    repetition_elsewhere: float | None
    """Mean correlation over all pairs of tiles on different lags: what `repetition_mean` is to be compared with."""
    entropy: float
    """Mean entropy of a row, in nats."""
    entropy_error: float | None
    uniform_entropy: float
    """log N: the entropy of uniform attention."""
    head_spread: float
    """Standard deviation over heads of the diagonal."""
    head_diagonals: tuple[float, ...]
    """(H) the diagonal of each head."""
    kept_mass: Mapping[str, float]
    """Share of the mass that each candidate mask keeps, text included, by the mask's name."""
    stability: tuple[Stability, ...]


@dataclass(frozen=True)
class Settings:
    """What was run: everything that decides the numbers, and how they were computed."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    at: tuple[float, ...]
    """The asked shares of the trajectory, 0 = the first step (noise)."""
    steps_seen: tuple[int, ...]
    """The steps looked at, counted from 0."""
    timesteps: tuple[float, ...]
    """The timestep of each of them."""
    scheduler: str
    steps: int
    """Steps of the whole trajectory."""
    guidance: float
    video_frames: int
    height: int
    width: int
    rows: int
    """Query rows sampled a map, the same places in every frame."""
    device: str
    dtype: str
    kernel: str
    """What summed the tiles: "torch" or "triton"."""
    command: str
    """The command line that made it."""
    versions: Mapping[str, str]
    machine: Machine


@dataclass(frozen=True)
class Sample:
    """One prompt, seed and step, by their places in `Settings.prompts`, `Settings.seeds` and `Settings.steps_seen`."""

    prompt: int
    seed: int
    step: int


@dataclass(frozen=True)
class Analysis:
    """All of it: `model` as it was asked for, `backbone` its name, `weights` the digest of its transformer."""

    model: str
    backbone: str
    weights: str
    grid: VideoGrid
    settings: Settings
    samples: tuple[Sample, ...]
    candidates: tuple[str, ...]
    """Names of the candidate masks, sparsest first."""
    layers: tuple[LayerAnalysis, ...]
    seconds: Mapping[str, float]
    """Seconds by phase ("load", "text", "denoise", "statistics"), all starts of the command added up."""
    peak_memory_bytes: int

    def content(self) -> dict[str, Any]:
        """The analysis as JSON values, its schema first."""
        return {"schema": SCHEMA, **asdict(self)}

    def write(self, path: Path | str) -> None:
        """Write `analysis.json` (or another file), whole or not at all. Raises EvditError for an unwritable place."""
        write_json(path, self.content())

    @staticmethod
    def read(path: Path | str) -> Analysis:
        """The analysis of a file, or of the run folder that holds it. Raises EvditError for another file."""
        path = Path(path) / FILE if Path(path).is_dir() else Path(path)
        return read(Analysis, path, "analysis", SCHEMA)


def to_json(analysis: Analysis) -> str:
    """The analysis as one line of JSON, as a page embeds it. Raises ValueError for NaN."""
    return json.dumps(analysis.content(), ensure_ascii=False, allow_nan=False)
