"""Rendered truth for the tests of the scorer, as uint8 videos (T, H, W, 3)."""

from __future__ import annotations

import numpy as np

from vdit_cli.data.shapes_world import Scene, draw_scenes, render


def pixels(scene: Scene, size: int = 128, frames: int = 29) -> np.ndarray:
    """The scene as a video file holds it."""
    video = render([scene], frames=frames, size=size)[0]
    return (video * 255).round().byte().permute(1, 2, 3, 0).contiguous().numpy()


def pixels_of(seed: int, count: int, two_objects: float = 0.0) -> tuple[list[Scene], list[np.ndarray]]:
    """Scenes of a seed, and their videos."""
    scenes = draw_scenes(seed, count, two_objects=two_objects)
    return scenes, [pixels(scene) for scene in scenes]
