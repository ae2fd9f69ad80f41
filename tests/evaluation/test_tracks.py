"""Motions from tracks: exact curves of each class, noise, gaps, and curves of no class."""

from __future__ import annotations

import numpy as np
import pytest

from tests.closeness import assert_close
from vdit_cli.data.shapes_prompts import SHAPES
from vdit_cli.evaluation.templates import UNIT_AREA, overlaps, radius_of, template
from vdit_cli.evaluation.tracks import read_track

pytestmark = pytest.mark.numerical

T = np.arange(29)
STILL = np.full((29, 2), 50.0)
RADIUS = np.full(29, 14.0)


def curve(motion: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre and radius of one motion, written down anew."""
    centre, radius = STILL.copy(), RADIUS.copy()
    if motion.startswith("moving"):
        step = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[motion.split()[1]]
        centre += np.outer(T, step) * 1.3
    elif motion == "bouncing":
        part = T / 19 % 1
        centre[:, 1] -= 30 * 4 * part * (1 - part)
    elif motion == "circling":
        centre += 17 * np.stack([np.cos(2 * np.pi * T / 26 + 1), np.sin(2 * np.pi * T / 26 + 1)], axis=1)
    elif motion in ("growing", "shrinking"):
        radius = 14 * np.linspace(0.65, 1.35, 29)[:: 1 if motion == "growing" else -1]
    return centre, radius


MOTIONS = ("standing still", "moving left", "moving right", "moving up", "moving down", "bouncing", "circling")


@pytest.mark.parametrize("motion", [*MOTIONS, "growing", "shrinking"])
def test_each_motion_is_read(motion: str):
    """Exact, under noise of 1 px, and with a third of the frames hidden."""
    centre, radius = curve(motion)
    exact = read_track(T, centre, radius, 29)
    assert exact.motion == motion
    assert exact.residual < 0.1
    assert_close(exact.radius, 14)
    noisy = centre + np.random.default_rng(0).normal(0, 1, centre.shape)
    found = read_track(T, noisy, radius, 29)
    assert found.motion == motion and 1.0 < found.residual < 1.7
    kept = np.delete(T, np.arange(8, 18))
    assert read_track(kept, centre[kept], radius[kept], 29).motion == motion


def test_a_residual_is_the_distance_from_the_class():
    """A zigzag of +-2 px about a straight way has a residual of 2."""
    centre, radius = curve("moving right")
    centre[:, 1] += np.where(T % 2 == 0, 2, -2)
    found = read_track(T, centre, radius, 29)
    assert found.motion == "moving right"
    assert_close(found.residual, 2, atol=0.01)


def test_curves_of_no_class_have_no_motion():
    """Diagonals, random walks, a jump in the middle, two hops too low, growing on the way."""
    walk = np.random.default_rng(3).normal(0, 6, (29, 2)).cumsum(axis=0)
    jump = STILL + np.where(T < 14, 0, 40)[:, None]
    for centre in (STILL + T[:, None] * 1.5, STILL + walk, jump):
        found = read_track(T, centre, RADIUS, 29)
        assert found.motion is None and found.reason and found.residual > 4
    assert read_track(T, curve("moving right")[0], curve("growing")[1], 29).motion is None
    assert read_track(T[:3], STILL[:3], RADIUS[:3], 29).motion is None


@pytest.mark.parametrize("shape", SHAPES)
def test_a_template_overlaps_itself_most(shape: str):
    """Drawn at two sizes and off the grid: its own template fits to .99, every other less."""
    centre = np.array([[40.3, 60.8], [70.0, 50.5]])
    radius = np.array([12.0, 30.0])
    axis = np.arange(128) + 0.5
    x, y = axis[None, None, :] - centre[:, 0, None, None], axis[None, :, None] - centre[:, 1, None, None]
    alpha = template(shape, x, y, radius[:, None, None])
    area = alpha.sum(axis=(1, 2))
    assert_close(radius_of(shape, area), radius, rtol=0.01)
    assert_close(area, UNIT_AREA[shape] * radius**2, rtol=0.02)
    found = overlaps(alpha, area, centre)
    assert found[shape].min() > 0.985
    assert all(values.max() < 0.95 for other, values in found.items() if other != shape)
