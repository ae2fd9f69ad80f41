"""Runs of planted videos: folders of PNGs, which keep every pixel, each with its prompt and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.video_file import write_video
from vdit_cli.evaluation import compare as comparing
from vdit_cli.timing import Silent


def plain_video(levels: list[int], height: int = 8, width: int = 12) -> np.ndarray:
    """A video whose frames have one grey level each."""
    return np.stack([np.full((height, width, 3), level, np.uint8) for level in levels])


def plant(run: str, name: str, frames: np.ndarray, prompt: str | None = None, seed: int | None = 0, fps: int = 8):
    """One video of a run; without a prompt it tells nothing."""
    told = {} if prompt is None else {"prompt": prompt, "seed": str(seed)}
    write_video(Path(run) / name, frames, fps, told)


def compare(*runs: str, output: str = "out", **given: Any) -> comparing.Compared:
    """The comparison of folders, a folder of PNGs unless told otherwise."""
    progress = given.pop("progress", Silent())
    return comparing.compare([Path(run) for run in runs], Path(output), progress, **{"limit": 8, **given})
