"""Every knob of every stage: one frozen dataclass a stage, each field with its default and its help, once.

A recipe is read in this order, later ones winning: default < recipe file (YAML) < `--set section.key=value` < flag.
Every value keeps its origin, so that an error can say where it came from. None stands for "the model's own default".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vdit_cli.knobs import Section, flat, knob, read, section


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(Section):
    """`evdit generate`: a prompt to a video."""

    model: str = knob("shapes", "a registered name, a folder, or owner/name on a hub")
    text_encoder: str | None = knob(None, "folder or hub id of the text encoder, where the model has none inside")
    checkpoint: str | None = knob(None, "a training run (or its folder) whose transformer replaces the model's own")
    masks: str | None = knob(None, "attention masks: a plan file, a run that made one, k:F-k for all layers, or none")
    allow_other_weights: bool = knob(False, "take a plan that was searched on other weights")
    steps: int | None = knob(None, "denoising steps", at_least=1)
    scheduler: str | None = knob(None, "sampler: ddim, euler-ancestral, dpm++2m or unipc")
    guidance: float | None = knob(None, "strength of classifier-free guidance; 1 is without")
    negative: str | None = knob(None, "what the video should not show")
    seed: int = knob(0, "the first video's noise; video i takes seed + i", at_least=0)
    num: int = knob(1, "videos a prompt", at_least=1)
    batch: int = knob(1, "videos denoised at once", at_least=1)
    video_frames: int | None = knob(None, "frames of the video: 4k+1", flag="--frames", at_least=1)
    height: int | None = knob(None, "pixels, a multiple of 16", at_least=16)
    width: int | None = knob(None, "pixels, a multiple of 16", at_least=16)
    fps: int | None = knob(None, "frames a second of the file", at_least=1)
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one, never mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "numbers of the model; auto suits the device"
    )
    offload: Literal["none", "model", "block"] = knob(
        "none", "keep on the device all, one part, or one block at a time"
    )
    vae_tiling: bool = knob(False, "decode in overlapping tiles: less memory, a little slower")
    kernel: str = knob("auto", "attention kernel; auto takes the fastest that can")
    strict: bool = knob(False, "a kernel fallback is an error (exit 6)")
    metadata: bool = knob(True, "write prompt, seed and model into the video file")


@dataclass(frozen=True, kw_only=True)
class VaeTraining(Section):
    """The video autoencoder of `shapes`."""

    iterations: int = knob(4000, "optimiser steps", at_least=1)
    batch_size: int = knob(4, "clips a step", at_least=1)
    learning_rate: float = knob(1e-3, "peak learning rate")
    warmup: int = knob(100, "steps to reach the peak", at_least=0)
    flat: float = knob(0.3, "share of the steps at the peak; then a linear fall to 1 %")
    ema: float = knob(0.995, "decay of the averaged weights that are kept")
    two_objects: float = knob(0.4, "share of clips with a second object")
    config: dict[str, Any] = knob({}, "CausalVAEModel config, laid over the built-in one")


@dataclass(frozen=True, kw_only=True)
class TransformerTraining(Section):
    """The text encoder and transformer of `shapes`."""

    iterations: int = knob(6000, "optimiser steps", at_least=1)
    batch_size: int = knob(256, "latent clips a step", at_least=1)
    learning_rate: float = knob(1.5e-3, "peak learning rate")
    warmup: int = knob(300, "steps to reach the peak", at_least=0)
    flat: float = knob(0.3, "share of the steps at the peak; then a linear fall to 1 %")
    ema: float = knob(0.999, "decay of the averaged weights that are kept")
    two_objects: float = knob(0.3, "share of clips with a second object")
    prompt_dropout: float = knob(0.1, "share of clips whose prompt is blanked, for guidance")
    config: dict[str, Any] = knob({}, "OpenSoraT2V config, laid over the built-in one")


@dataclass(frozen=True, kw_only=True)
class TrainShapesOptions(Section):
    """`evdit train-shapes`: the embedded model from nothing."""

    seed: int = knob(0, "of data, initial weights and noise", at_least=0)
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps; auto takes a GPU if there is one, never mps")
    vae: VaeTraining = section(VaeTraining, "the autoencoder")
    transformer: TransformerTraining = section(TransformerTraining, "the transformer and its text encoder")


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """One section a stage; the key of a value is its path, `generate.steps`."""

    generate: GenerateOptions = section(GenerateOptions, "a prompt to a video")
    train_shapes: TrainShapesOptions = section(TrainShapesOptions, "the embedded model from nothing")

    def resolved(self, name: str) -> dict[str, dict[str, Any]]:
        """Every key of the section `name`, dotted, with its value and its origin ("default" where nothing set it)."""
        return {
            key: {"value": value, "origin": self.origins.get(key, "default")}
            for key, value in flat(getattr(self, name), f"{name}.")
        }

    def resolved_text(self, name: str) -> str:
        """The section `name` a key a line, each with its origin as a comment, for stderr."""
        lines = [f"{key}: {json.dumps(each['value'])}  # {each['origin']}" for key, each in self.resolved(name).items()]
        return "\n".join(lines)


def load(path: Path | str | None = None, sets: Iterable[str] = (), flags: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of a file, of `section.key=value` settings and of flags by dotted key (None = not given).

    Raises EvditError (exit 2), with file and line, for an unknown key, a key set twice, a wrong type or a number out
    of its bounds, and for a file that can't be read as UTF-8 YAML.
    """
    return read(Recipe, None if path is None else Path(path), sets, flags or {})
