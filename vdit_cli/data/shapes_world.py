"""The shapes world as pictures: scenes to video tensors, on any device, by signed distances.

Letters: B batch, K objects a scene (2; a missing one is hidden), T pixel frames, C colours, h, w picture size.
Importing this module gives the whole world: the language is `shapes_prompts`, the drawing of scenes `shapes_scenes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vdit_cli.data.shapes_prompts import (
    SHAPES,
    WORDS,
    caption,
    held_out_prompts,
    parse_prompt,
    partial_prompts,
    prompts,
)
from vdit_cli.data.shapes_scenes import (
    BACKGROUND_RGB,
    CHECKER,
    COLOUR_RGB,
    CROSS_ARM_HALF_WIDTH,
    FRAMES,
    RING_HOLE,
    SIDE,
    SQUARE_HALF_SIDE,
    TRIANGLE_CIRCUMRADIUS,
    Scene,
    SceneObject,
    draw_scene,
    draw_scenes,
    leave_out,
)

__all__ = [
    "BACKGROUND_RGB",
    "COLOUR_RGB",
    "FRAMES",
    "WORDS",
    "Scene",
    "SceneObject",
    "SceneTensors",
    "caption",
    "draw_scene",
    "draw_scenes",
    "held_out_prompts",
    "leave_out",
    "pack_scenes",
    "parse_prompt",
    "partial_prompts",
    "prompts",
    "render",
    "render_tensors",
]

_CLIPS_AT_ONCE = {"cpu": 1, "cuda": 64}


class SceneTensors(NamedTuple):
    """Scenes as tensors, the input of `render_tensors`: colours in [0, 1], lengths in pixels of a 128 x 128 picture."""

    fields_B2C: Tensor
    shape_BK: Tensor
    colour_BKC: Tensor
    centre_BKT2: Tensor
    radius_BKT: Tensor
    shown_BK: Tensor


def pack_scenes(scenes: Sequence[Scene], device: torch.device | str = "cpu", frames: int = FRAMES) -> SceneTensors:
    """The first `frames` frames of `scenes` as tensors on `device`, for `render_tensors`.

    Raises: ValueError when a scene is shorter than `frames`.
    """
    if not 1 <= frames <= FRAMES:
        raise ValueError(f"{frames} frames of a scene of {FRAMES}")
    count = len(scenes)
    fields = np.array([BACKGROUND_RGB[scene.background] for scene in scenes], np.float32).reshape(count, 2, 3)
    shape = np.zeros((count, 2), np.int64)
    colour = np.zeros((count, 2, 3), np.float32)
    centre = np.zeros((count, 2, frames, 2), np.float32)
    radius = np.ones((count, 2, frames), np.float32)
    shown = np.zeros((count, 2), np.bool_)
    for b, scene in enumerate(scenes):
        for k, one in enumerate(scene.objects):
            shape[b, k], colour[b, k], shown[b, k] = SHAPES.index(one.shape), COLOUR_RGB[one.colour], True
            centre[b, k], radius[b, k] = one.track[:frames], one.radius[:frames]
    arrays = (fields, shape, colour, centre, radius, shown)
    return SceneTensors(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


def render_tensors(scenes: SceneTensors, size: int = int(SIDE)) -> Tensor:
    """Video (B, 3, T, size, size), float32 in [0, 1], of packed scenes: a pure function, fit for `torch.compile`."""
    pixel = SIDE / size
    axis = (torch.arange(size, device=scenes.fields_B2C.device, dtype=torch.float32) + 0.5) * pixel
    field = torch.floor(axis / CHECKER)
    is_odd_hw = torch.remainder(field[:, None] + field[None, :], 2.0)
    even_BCTHW, odd_BCTHW = (scenes.fields_B2C[:, i, :, None, None, None] for i in (0, 1))
    video = even_BCTHW + (odd_BCTHW - even_BCTHW) * is_odd_hw
    for k in (1, 0):
        distance_BThw = _signed_distance(
            scenes.shape_BK[:, k, None, None, None],
            axis - scenes.centre_BKT2[:, k, :, None, None, 0],
            axis[:, None] - scenes.centre_BKT2[:, k, :, None, None, 1],
            scenes.radius_BKT[:, k, :, None, None],
        )
        alpha = (0.5 - distance_BThw / pixel).clamp(0.0, 1.0) * scenes.shown_BK[:, k, None, None, None]
        video = video + alpha[:, None] * (scenes.colour_BKC[:, k, :, None, None, None] - video)
    return video


def render(
    scenes: Sequence[Scene],
    device: torch.device | str = "cpu",
    frames: int = FRAMES,
    size: int = int(SIDE),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Video (B, 3, T, size, size) in [0, 1] of `scenes`: the first `frames` frames, computed in float32 and cast.

    A few clips at a time, so that the peak of memory is little above the result's own size.
    """
    at_once = _CLIPS_AT_ONCE.get(torch.device(device).type, 1)
    video = torch.empty((len(scenes), 3, frames, size, size), dtype=dtype, device=device)
    for start in range(0, len(scenes), at_once):
        packed = pack_scenes(scenes[start : start + at_once], device, frames)
        video[start : start + at_once] = render_tensors(packed, size)
    return video


def _signed_distance(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Distance to the border of a shape (index in SHAPES), negative inside; x and y from its centre, y down.

    Exact for round shapes and along straight borders; outside a corner it is the largest of the borders' distances.
    """
    across, along = x.abs(), y.abs()
    from_centre = (x.square() + y.square()).sqrt()
    arm = CROSS_ARM_HALF_WIDTH * radius
    base = TRIANGLE_CIRCUMRADIUS / 2 * radius
    circle = from_centre - radius
    square = torch.maximum(across, along) - SQUARE_HALF_SIDE * radius
    triangle = torch.maximum(y, 0.75**0.5 * across - 0.5 * y) - base
    ring = (from_centre - (1 + RING_HOLE) / 2 * radius).abs() - (1 - RING_HOLE) / 2 * radius
    cross = torch.minimum(
        torch.maximum(across - radius, along - arm),
        torch.maximum(across - arm, along - radius),
    )
    distance = torch.where(shape == SHAPES.index("circle"), circle, square)
    for name, candidate in (("triangle", triangle), ("ring", ring), ("cross", cross)):
        distance = torch.where(shape == SHAPES.index(name), candidate, distance)
    return distance
