"""Frechet distance of clips to the world that their prompts are of, and of that world to itself.

A clip is 8 frames, evenly spaced, as means over 8 x 8 fields, and the 7 differences between them: 2880 numbers, which a
fixed Gaussian matrix projects to 64. No network has a part in it. Letters: T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from vdit_cli.data.shapes_asked import draw_asked
from vdit_cli.data.shapes_scenes import FRAMES
from vdit_cli.measures import frechet, thumbnail

SEEN_FRAMES = 8
SIDE = 8
WIDTH = 64
NUMBERS = (2 * SEEN_FRAMES - 1) * SIDE * SIDE * 3
DRAWS = (1, 2)
"""Seeds of the two worlds: clips are compared with the first, and the first with the second."""


@dataclass(frozen=True)
class Frechet:
    """The distance of `clips` clips to the world drawn for their prompts; `floor` is that of the world to itself."""

    clips: int
    distance: float
    floor: float

    def content(self) -> dict[str, Any]:
        """The distances as JSON values."""
        return asdict(self)


def evenly(frames: int) -> np.ndarray:
    """The places of SEEN_FRAMES frames among `frames`, first and last included; of fewer some come twice."""
    return np.linspace(0, frames - 1, SEEN_FRAMES).round().astype(int)


def features(thumbnails: Sequence[np.ndarray]) -> list[float]:
    """The 64 numbers of a clip whose frames came as `thumbnail`s, one of each frame."""
    return _projected(np.stack([thumbnails[at] for at in evenly(len(thumbnails))]))


def world_features(prompt: str, number: int, frames: int) -> list[list[float]]:
    """The 64 numbers of two clips of `frames` frames that the world draws for a prompt; each `number` has its own.

    Only the frames that are looked at are rendered, as uint8; the world's clips end at FRAMES.
    Raises: ValueError for a prompt that is not of the world.
    """
    from vdit_cli.data.shapes_world import render  # torch, which only this needs

    at = evenly(min(frames, FRAMES))
    scenes = [draw_asked(prompt, number, seed) for seed in DRAWS]
    seen = [
        replace(scene, objects=tuple(replace(one, track=one.track[at], radius=one.radius[at]) for one in scene.objects))
        for scene in scenes
    ]
    videos = (render(seen, frames=SEEN_FRAMES) * 255).round().byte().permute(0, 2, 3, 4, 1).numpy()
    return [_projected(np.stack([thumbnail(frame, SIDE) for frame in video])) for video in videos]


def distances(clips: Sequence[Sequence[float]], worlds: Sequence[Sequence[Sequence[float]]]) -> Frechet:
    """Both distances, of the features of clips and the two draws for each. Raises: ValueError for fewer than two."""
    shown, (drawn, other) = np.array(clips), np.array(worlds).swapaxes(0, 1)
    return Frechet(len(clips), frechet(shown, drawn), frechet(drawn, other))


@cache
def projection() -> np.ndarray:
    """The fixed matrix (2880, 64), normal numbers of seed 0 over 8: on average lengths stay as they are."""
    return np.random.default_rng(0).standard_normal((NUMBERS, WIDTH)) / WIDTH**0.5


def _projected(thumbnails: np.ndarray) -> list[float]:
    numbers = np.concatenate([thumbnails.ravel(), np.diff(thumbnails, axis=0).ravel()])
    # Not `@`: a BLAS adds up in an order that depends on the processor and on its threads.
    return np.einsum("n,nd->d", numbers, projection()).tolist()
