"""Everything that decides an analysis, checked before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vdit_cli.analysis.rows import RowSample, draw_rows
from vdit_cli.analysis.tile_mass import CHUNK_SCORES
from vdit_cli.analysis.trajectory import Trajectory, trajectories
from vdit_cli.artifacts.run_dir import Request
from vdit_cli.backbones.base import Backbone
from vdit_cli.errors import setting
from vdit_cli.knobs import deciding, flat
from vdit_cli.recipe import AnalyzeOptions
from vdit_cli.sampling.announcement import counted, prompt_doubts, say_options, summary
from vdit_cli.sampling.default_prompts import choose_prompts
from vdit_cli.sampling.memory import Placing, needed
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.sampling.taps import read_layers
from vdit_cli.sampling.trajectory import (
    check_memory,
    checked_grid,
    open_model,
    read_seeds,
    read_shares,
    spec_of,
    steps_at,
    timesteps_of,
)
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask, family_masks
from vdit_cli.timing import Progress

FEW_TOKENS = 4096
ROWS_OF_FEW, ROWS_OF_MANY = 256, 64
"""Query rows sampled by default, up to FEW_TOKENS and above."""


@dataclass(frozen=True)
class Study:
    """A model opened for analysis, weights not yet loaded, and all that is to be looked at."""

    options: AnalyzeOptions
    backbone: Backbone
    spec: SampleSpec
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    at: tuple[float, ...]
    timesteps: tuple[float, ...]
    """Of the whole trajectory."""
    steps: tuple[int, ...]
    """Those looked at, counted from 0."""
    layers: tuple[int, ...]
    candidates: Mapping[str, TileMask]
    rows: RowSample

    @property
    def grid(self) -> VideoGrid:
        """The tokens of the model's self-attention."""
        return self.rows.grid

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The trajectories to sample, in order."""
        return trajectories(len(self.prompts), len(self.seeds))

    @property
    def values(self) -> dict[str, Any]:
        """The options that decide the numbers, the model's own defaults filled in."""
        filled = {name: getattr(self.spec, name) for name in ("video_frames", "height", "width", "steps", "guidance")}
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        filled |= {"scheduler": self.spec.scheduler, "dtype": dtype, "rows": self.rows.rows}
        return {
            **deciding(self.options),
            **filled,
            "prompts": list(self.prompts),
            "weights": self.backbone.weights_digest,
        }

    def request(self) -> Request:
        """What decides the run."""
        lineage = (self.backbone.weights_digest, *self.backbone.lineage)
        return Request("analyze", self.options.model, self.values, origins=dict(self.options.origins), lineage=lineage)

    def command(self) -> str:
        """A command line that asks for the same."""
        words = ["evdit analyze"]
        for key, value in flat(self.options):
            origin = self.options.where(key)
            if origin is not None:
                words.append(origin if origin.startswith("--") else setting(f"analyze.{key}", value))
        return " ".join(words)


def prepare(options: AnalyzeOptions, progress: Progress) -> Study:
    """Open the model and check everything that was asked for against it; says what will be done.

    Raises EvditError with the exit code that fits.
    """
    at = read_shares(options.at, options.where("at") or "analyze.at")
    seeds = read_seeds(options.seeds, options.where("seeds") or "analyze.seeds")
    backbone = open_model(options, progress)
    spec = spec_of(options, backbone)
    grid = checked_grid(backbone, spec)
    layers = read_layers(options.layers, backbone.architecture.layers, options.where("layers") or "analyze.layers")
    file = Path(options.prompts_file) if options.prompts_file else None
    prompts = choose_prompts(file, options.num_prompts, backbone)
    doubts = prompt_doubts(backbone, prompts, strict=False)
    timesteps = timesteps_of(backbone, spec)
    steps = steps_at(at, len(timesteps))
    candidates = read_masks(options.masks, grid.frames, options.where("masks") or "analyze.masks")
    rows = options.rows or (ROWS_OF_FEW if grid.tokens <= FEW_TOKENS else ROWS_OF_MANY)
    sample = draw_rows(grid, rows)
    study = Study(options, backbone, spec, prompts, seeds, at, timesteps, steps, layers, candidates, sample)
    need = check_memory("analysis", backbone, spec, options.offload, partial(analysis_bytes, study))
    say_what_comes(study, need, progress)
    for line in doubts.values():
        progress.say(f"warning: {line}")
    return study


def read_masks(text: str, frames: int, where: str) -> dict[str, TileMask]:
    """Candidate masks by name, sparsest first; "all" is every mask of the family but the full one."""
    if text.strip() == "all":
        return {mask.name: mask for mask in family_masks(frames) if not mask.is_dense}
    masks = {part.strip(): TileMask.parse(part, frames, where) for part in text.split(",")}
    return dict(sorted(masks.items(), key=lambda item: item[1].kept_share))


def analysis_bytes(study: Study, spec: SampleSpec, offload: str) -> int:
    """Bytes that text or denoising needs, whichever is more, with the statistics beside the latter.

    Nothing is decoded. Beside the tensors of a step come those of the statistics.
    """
    need = needed(study.backbone, spec, Placing(offload, False, 1))
    tokens = study.backbone.grid(spec.video_frames, spec.height, spec.width).tokens
    # Float32 scores of a chunk and their softmax; of one head's sampled rows scores, shares, tiles, sorted shares (an
    # index and a float64 sum beside them) and comparisons.
    statistics = 4 * (2 * CHUNK_SCORES + 10 * study.rows.rows * tokens)
    return max(need["text"], need["denoise"] + statistics)


def say_what_comes(study: Study, need_bytes: int, progress: Progress) -> None:
    """What will run, the options that were set, and how much will be sampled."""
    seeds = f"seed{'' if len(study.seeds) == 1 else 's'} {', '.join(map(str, study.seeds))}"
    progress.say(summary(study.backbone, study.spec, seeds, need_bytes))
    say_options("analyze", study.options, study.values, study.backbone.name, progress)
    count = len(study.trajectories)
    progress.say(
        f"{count} {'trajectory' if count == 1 else 'trajectories'} ({counted(len(study.prompts), 'prompt')}, "
        f"{counted(len(study.seeds), 'seed')}) to step {study.steps[-1] + 1} of {study.spec.steps}, "
        f"{counted(len(study.steps), 'step')} and {counted(len(study.layers), 'layer')} looked at, {study.grid}, "
        f"{study.rows.rows} sampled rows"
    )
