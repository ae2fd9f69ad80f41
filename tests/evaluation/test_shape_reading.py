"""What must not be guessed: blank, noisy and garbled clips, and pieces of a scene that contradict each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import ndimage

from tests.evaluation.clips import pixels, pixels_of
from vdit_cli.data.shapes_world import Scene, draw_scenes
from vdit_cli.evaluation.shape_reading import Reading, read_attributes

COUNT = 8


@pytest.fixture(scope="module")
def scenes_and_videos() -> tuple[list[Scene], list[np.ndarray]]:
    """24 clips with one object each."""
    return pixels_of(77, 24)


def uniform(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """One colour, all over."""
    return np.zeros_like(videos[0]) + random.integers(0, 256, 3).astype(np.uint8)


def background_only(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """A background of the world with nothing before it."""
    colours = [(0, 0, 0), (115, 115, 115), (13, 18, 89), (209, 184, 140)]
    return np.zeros_like(videos[0]) + np.array(colours[i % 4], np.uint8)


def gaussian_noise(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """Every pixel for itself, about a random brightness."""
    return np.clip(random.normal(random.uniform(0, 255), 15 + 10 * i, videos[0].shape), 0, 255).astype(np.uint8)


def noisy(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """A clip under noise of .2."""
    return np.clip(videos[i] + random.normal(0, 51, videos[i].shape), 0, 255).astype(np.uint8)


def shuffle(videos: list[np.ndarray], i: int, random: np.random.Generator, side: int, each_frame: bool) -> np.ndarray:
    """The patches of a clip in another order, the same in each frame or not."""
    across = 128 // side
    order = random.permutation(across**2)
    shuffled = np.empty_like(videos[i])
    for t, frame in enumerate(videos[i]):
        order = random.permutation(across**2) if each_frame else order
        patches = frame.reshape(across, side, across, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[order]
        shuffled[t] = patches.reshape(across, across, side, side, 3).swapaxes(1, 2).reshape(128, 128, 3)
    return shuffled


def shuffled_tokens(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """Patches of 16 pixels, one order for all frames."""
    return shuffle(videos, i, random, 16, each_frame=False)


def shuffled_small(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """Patches of 8 pixels, one order for all frames."""
    return shuffle(videos, i, random, 8, each_frame=False)


def shuffled_each_frame(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """Patches of 16 pixels, another order in each frame."""
    return shuffle(videos, i, random, 16, each_frame=True)


def mixture(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """The mean of two clips."""
    return (videos[i] * 0.5 + videos[i + COUNT] * 0.5).astype(np.uint8)


def blurred_mixture(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """The mean of two clips, blurred by 8 pixels and 2 frames."""
    return ndimage.gaussian_filter(videos[i] * 0.5 + videos[i + COUNT] * 0.5, (2, 8, 8, 0)).astype(np.uint8)


def random_checkers(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """Fields of the board in a random pattern, still in half of the clips."""
    fields = random.choice([56, 158], (29 if i % 2 else 1, 8, 8)).astype(np.uint8)
    return np.zeros_like(videos[0]) + fields.repeat(16, axis=1).repeat(16, axis=2)[..., None]


def coloured_checkers(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """Fields of four colours of the world in a random pattern."""
    colours = np.array([(0, 0, 0), (230, 25, 25), (255, 255, 255), (26, 64, 255)], np.uint8)
    fields = colours[random.integers(0, 4, (1, 8, 8))]
    return np.zeros_like(videos[0]) + fields.repeat(16, axis=1).repeat(16, axis=2)


def frames_of_many(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """Each frame from another clip."""
    return np.stack([videos[random.integers(len(videos))][t] for t in range(29)])


def black_and_empty(videos: list[np.ndarray], i: int, random: np.random.Generator) -> np.ndarray:
    """A clip that is black from the third frame on."""
    return videos[i] * (np.arange(29) < 3)[:, None, None, None].astype(np.uint8)


GARBLED: tuple[Callable[[list[np.ndarray], int, np.random.Generator], np.ndarray], ...] = (
    uniform,
    background_only,
    gaussian_noise,
    noisy,
    shuffled_tokens,
    shuffled_small,
    shuffled_each_frame,
    mixture,
    blurred_mixture,
    random_checkers,
    coloured_checkers,
    frames_of_many,
    black_and_empty,
)


@pytest.mark.parametrize("garble", GARBLED, ids=lambda garble: garble.__name__)
def test_garbled_clips_are_unreadable(garble: Callable, scenes_and_videos: tuple[list[Scene], list[np.ndarray]]):
    """Nothing is guessed, and a reason is given, for every one."""
    random = np.random.default_rng(5)
    for i in range(COUNT):
        reading = read_attributes(garble(scenes_and_videos[1], i, random))
        assert reading.unreadable, (i, reading)
        assert reading == Reading(unreadable=reading.unreadable)
        assert reading.background is None and reading.objects == () and reading.object_like("red") is None


def test_the_halves_of_two_clips_over_one_background_are_unreadable():
    """No object is there for long enough."""
    scenes = [scene for scene in draw_scenes(78, 200, two_objects=0.0) if scene.background == "gray"]
    pairs = [(a, b) for a, b in zip(scenes, scenes[1:], strict=False) if a.objects[0].colour != b.objects[0].colour]
    for a, b in pairs[:6]:
        assert read_attributes(np.concatenate([pixels(a)[:14], pixels(b)[14:]])).unreadable


def test_frames_out_of_order_have_no_motion():
    """Size, colour and shape are as before; a motion, or a growth, can't be made out."""
    random = np.random.default_rng(1)
    moving = [s for s in draw_scenes(79, 60, two_objects=0.0) if s.objects[0].motion != "standing still"][:10]
    for scene in moving:
        reading = read_attributes(pixels(scene)[random.permutation(29)])
        if reading.unreadable is None:
            assert reading.objects[0].motion is None and reading.objects[0].colour == scene.objects[0].colour
            assert any("motion" in reason for reason in reading.objects[0].reasons)


def test_an_object_drawn_twice_is_two_objects():
    """The same object once more, in a corner that is free."""
    scenes = [s for s in draw_scenes(80, 300, two_objects=0.0) if s.objects[0].size == "small"]
    free = [s for s in scenes if s.background == "black" and s.objects[0].track[:, 0].min() > 66][:5]
    assert len(free) == 5
    for scene in free:
        video = pixels(scene)
        reading = read_attributes(np.maximum(video, np.roll(video, -50, axis=2)))
        assert [shown.colour for shown in reading.objects] == [scene.objects[0].colour] * 2
        assert reading.objects[0].shape == scene.objects[0].shape


def test_too_few_frames_have_no_motion_but_the_rest():
    """One frame is a picture: size, colour, shape and background."""
    scene = draw_scenes(81, 1, two_objects=0.0)[0]
    words = scene.objects[0]
    shown = read_attributes(pixels(scene)[:1]).objects[0]
    assert (shown.colour, shown.shape, shown.motion) == (words.colour, words.shape, None)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((29, 128, 128, 3), np.float32),
        np.zeros((29, 128, 128), np.uint8),
        np.zeros((29, 128, 128, 4), np.uint8),
        np.zeros((0, 128, 128, 3), np.uint8),
    ],
    ids=["float", "no colours", "four colours", "no frames"],
)
def test_only_a_uint8_video_is_taken(frames: np.ndarray):
    """Anything else is a mistake of the caller, not an unreadable clip."""
    with pytest.raises(ValueError, match="uint8"):
        read_attributes(frames)


def test_a_picture_that_is_not_square_is_unreadable():
    """No clip of the world has such a picture; a tiny one has nothing to read."""
    assert "square" in read_attributes(np.zeros((5, 64, 128, 3), np.uint8)).unreadable
    assert read_attributes(np.zeros((5, 2, 2, 3), np.uint8)).unreadable
