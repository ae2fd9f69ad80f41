"""The shapes world as pictures: areas and colours by closed form, borders soft, any size, device and frame count."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch

from tests.closeness import assert_close, assert_within
from vdit_cli.data.shapes_prompts import COLOURS, SHAPES
from vdit_cli.data.shapes_scenes import BACKGROUND_RGB, COLOUR_RGB, FRAMES, Scene, SceneObject, draw_scenes
from vdit_cli.data.shapes_world import pack_scenes, render, render_tensors

pytestmark = pytest.mark.numerical


def still(shape: str, radius: float, x: float = 64.0, y: float = 64.0, colour: str = "white") -> SceneObject:
    """An object that stands at (x, y)."""
    track = np.tile(np.array([x, y], np.float32), (FRAMES, 1))
    return SceneObject("large", colour, shape, "standing still", track, np.full(FRAMES, radius, np.float32))


@pytest.mark.parametrize("radius", [9.0, 20.3, 35.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_that_of_the_geometry(shape: str, radius: float):
    """White on black: the sum of the pixels is the area, from elementary geometry, within 3 %."""
    side, arm, across = 2 * 0.86 * radius, 2 * 0.34 * radius, 2 * radius
    area = {
        "circle": pi * radius**2,
        "square": side**2,
        "triangle": 3 * 3**0.5 / 4 * (1.2 * radius) ** 2,
        "ring": pi * radius**2 * (1 - 0.55**2),
        "cross": 2 * across * arm - arm**2,
    }[shape]
    video = render([Scene("black", (still(shape, radius, 63.7, 64.2),))], frames=1)
    assert_close(float(video[0, 0, 0].sum()), area, rtol=0.03)
    mass = video[0, 0, 0].double()
    middle = torch.arange(128, dtype=torch.float64) + 0.5
    assert_close(float((mass.sum(0) * middle).sum() / mass.sum()), 63.7, atol=0.09, planted=62.7)
    assert_close(float((mass.sum(1) * middle).sum() / mass.sum()), 64.2, atol=0.09, planted=65.2)


def test_shapes_look_like_themselves():
    """Points that tell the five apart: middle, top, corner, hole; the triangle points up."""
    videos = {shape: render([Scene("black", (still(shape, 30),))], frames=1)[0, 0, 0] for shape in SHAPES}
    points = {"middle": (64, 64), "above": (64, 36), "below": (64, 92), "corner": (86, 42), "high": (64, 30)}
    seen = {shape: {name for name, (x, y) in points.items() if video[y, x] > 0.5} for shape, video in videos.items()}
    assert seen == {
        "circle": {"middle", "above", "below"},
        "square": {"middle", "corner"},
        "triangle": {"middle", "above", "high"},
        "ring": {"above", "below"},
        "cross": {"middle", "above", "below"},
    }


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("background", list(BACKGROUND_RGB))
def test_colours_are_exact(colour: str, background: str):
    """The middle has the object's colour; two fields of the background theirs."""
    video = render([Scene(background, (still("circle", 20, colour=colour),))], frames=1)[0, :, 0]
    found = torch.stack([video[:, 64, 64], video[:, 8, 8], video[:, 8, 24]])
    assert_close(found, torch.tensor([COLOUR_RGB[colour], *BACKGROUND_RGB[background]]), atol=1e-5)


def test_the_first_object_lies_on_top():
    """Where both are, the first one's colour is seen."""
    scene = Scene("gray", (still("circle", 15, 60, colour="red"), still("circle", 15, 70, colour="blue")))
    video = render([scene], frames=1)[0, :, 0]
    assert_close(video[:, 64, [65, 80]].T, torch.tensor([COLOUR_RGB["red"], COLOUR_RGB["blue"]]), atol=1e-5)


def test_borders_are_soft_and_values_in_range():
    """Anti-aliased: a share of the pixels is mixed, and none leaves [0, 1]."""
    video = render(draw_scenes(3, 6, two_objects=0.5))
    assert video.shape == (6, 3, 29, 128, 128) and video.dtype == torch.float32
    assert float(video.min()) >= 0 and float(video.max()) <= 1
    soft = render([Scene("black", (still("circle", 20.2),))], frames=1)[0, 0, 0]
    assert 80 < int(((soft > 0.01) & (soft < 0.99)).sum()) < 200


def test_frames_sizes_and_types():
    """The first frames only; other sizes show the same picture; the cast comes last."""
    scenes = draw_scenes(4, 3, two_objects=1.0)
    whole = render(scenes)
    assert torch.equal(render(scenes, frames=5), whole[:, :, :5])
    small = render(scenes, frames=5, size=64)
    pooled = torch.nn.functional.avg_pool3d(whole[:, :, :5], (1, 2, 2))
    assert small.shape == (3, 3, 5, 64, 64)
    errors = [float((x - pooled).abs().mean()) for x in (small, small.roll(1, 3))]
    assert_within(errors[0], 8e-4, planted=errors[1], told="a row shifted")
    assert render(scenes, frames=2, dtype=torch.bfloat16).dtype == torch.bfloat16
    for frames in (0, 30):
        with pytest.raises(ValueError, match="frames"):
            render(scenes, frames=frames)


def test_a_batch_is_its_clips():
    """Packing many at once changes no pixel, and no scenes make an empty batch."""
    scenes = draw_scenes(6, 5, two_objects=0.5)
    together = render_tensors(pack_scenes(scenes, frames=3))
    for one, scene in zip(together, scenes, strict=True):
        assert torch.equal(render([scene], frames=3)[0], one)
    assert render([], frames=3).shape == (0, 3, 3, 128, 128)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same():
    """Eager and compiled, to 1e-4."""
    scenes = draw_scenes(8, 16, two_objects=0.5)
    expected = render(scenes)
    assert_close(render(scenes, "cuda"), expected, atol=1e-4)
    compiled = torch.compile(render_tensors)(pack_scenes(scenes, "cuda"))
    assert_close(compiled, expected, atol=1e-4)
