"""Ideal shapes to compare an outline with: how well each one of equal area and the same centre covers it.

Letters: T frames, h, w picture size, n frames looked at. Lengths are pixels of a 128 x 128 picture.
"""

from __future__ import annotations

from math import pi

import numpy as np

from vdit_cli.data.shapes_prompts import SHAPES
from vdit_cli.data.shapes_scenes import CROSS_ARM_HALF_WIDTH, RING_HOLE, SQUARE_HALF_SIDE, TRIANGLE_CIRCUMRADIUS

UNIT_AREA = {
    "circle": pi,
    "square": 4 * SQUARE_HALF_SIDE**2,
    "triangle": 0.75 * 3**0.5 * TRIANGLE_CIRCUMRADIUS**2,
    "ring": pi * (1 - RING_HOLE**2),
    "cross": 8 * CROSS_ARM_HALF_WIDTH - 4 * CROSS_ARM_HALF_WIDTH**2,
}
"""Area of a shape of radius 1."""


def radius_of(shape: str, area: np.ndarray) -> np.ndarray:
    """Radius of a shape that has this area."""
    return np.sqrt(area / UNIT_AREA[shape])


def template(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Cover in [0, 1] of pixels at (x, y) from the centre by a shape; the arrays are broadcast together."""
    across, along = np.abs(x), np.abs(y)
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - radius
    elif shape == "ring":
        distance = np.abs(np.sqrt(x * x + y * y) - (1 + RING_HOLE) / 2 * radius) - (1 - RING_HOLE) / 2 * radius
    elif shape == "square":
        distance = np.maximum(across, along) - SQUARE_HALF_SIDE * radius
    elif shape == "triangle":
        distance = np.maximum(y, 0.75**0.5 * across - 0.5 * y) - TRIANGLE_CIRCUMRADIUS / 2 * radius
    else:
        arm = CROSS_ARM_HALF_WIDTH * radius
        distance = np.minimum(np.maximum(across - radius, along - arm), np.maximum(across - arm, along - radius))
    return np.clip(0.5 - distance, 0, 1)


def overlaps(alpha_nhw: np.ndarray, area: np.ndarray, centre: np.ndarray) -> dict[str, np.ndarray]:
    """Intersection over union, (n) for each shape, of soft outlines with templates of equal area and centre."""
    area, centre = area.astype(np.float32), centre.astype(np.float32)
    reach = TRIANGLE_CIRCUMRADIUS * float(radius_of("triangle", area).max())
    windows, x, y = _windows(alpha_nhw, centre, int(np.ceil(reach)) + 1)
    found = {}
    for shape in SHAPES:
        ideal = template(shape, x, y, radius_of(shape, area)[:, None, None])
        shared = np.minimum(windows, ideal).sum(axis=(1, 2))
        found[shape] = shared / (area + ideal.sum(axis=(1, 2)) - shared)
    return found


def _windows(alpha_nhw: np.ndarray, centre: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Square pieces about the centres, and the offsets x (n, 1, side) and y (n, side, 1) of their pixels."""
    padded = np.pad(alpha_nhw, ((0, 0), (half, half), (half, half)))
    corner = centre.astype(np.int64)
    side = 2 * half + 1
    windows = np.stack([padded[i, y : y + side, x : x + side] for i, (x, y) in enumerate(corner)])
    steps = np.arange(-half, half + 1, dtype=np.float32) + 0.5
    offset = steps[None, :] + (corner - centre)[..., None].transpose(1, 0, 2)
    return windows, offset[0][:, None, :].astype(np.float32), offset[1][:, :, None].astype(np.float32)
