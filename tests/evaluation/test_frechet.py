"""The Frechet distance of clips: its 2880 numbers, the world's own clips, and how it grows with damage."""

from __future__ import annotations

import numpy as np
import pytest

from tests.closeness import assert_close
from tests.evaluation.clips import pixels
from vdit_cli.data.shapes_asked import draw_asked
from vdit_cli.data.shapes_prompts import held_out_prompts
from vdit_cli.evaluation.frechet import DRAWS, distances, evenly, projection, world_features
from vdit_cli.evaluation.readings import see_frames

PROMPT = "a small red circle bouncing over a checkered background"


@pytest.mark.numerical
def test_the_features_are_those_that_are_described():
    """Eight frames as means over 16 x 16 pixels, then their differences, times the matrix of seed 0 over 8."""
    video = pixels(draw_asked(PROMPT, 0))
    fields = (video[::4] / 255).reshape(8, 8, 16, 8, 16, 3).mean(axis=(2, 4))
    numbers = np.concatenate([fields.ravel(), (fields[1:] - fields[:-1]).ravel()])
    matrix = np.random.default_rng(0).standard_normal((2880, 64)) / 8
    assert_close(np.array(see_frames(video).features), numbers @ matrix, atol=1e-9)
    assert_close(float(np.square(projection()).sum(axis=1).mean()), 1.0, rtol=0.01, told="lengths stay")


def test_frames_are_taken_evenly():
    """First and last, of 29 every fourth; of fewer than eight some twice."""
    assert evenly(29).tolist() == list(range(0, 29, 4))
    assert evenly(21).tolist() == [0, 3, 6, 9, 11, 14, 17, 20]
    assert evenly(2).tolist() == [0] * 4 + [1] * 4 and evenly(1).tolist() == [0] * 8


@pytest.mark.numerical
@pytest.mark.parametrize("frames", [29, 21])
def test_the_world_is_seen_as_a_video_of_it_would_be(frames: int):
    """Two scenes of the prompt, though only eight frames of each are rendered; longer clips are seen to its end."""
    whole = [list(see_frames(pixels(draw_asked(PROMPT, 7, seed), frames=frames)).features) for seed in DRAWS]
    found = world_features(PROMPT, 7, frames)
    assert_close(found, whole, atol=1e-9)
    assert found[0] != found[1] != world_features(PROMPT, 8, frames)[1]
    assert world_features(PROMPT, 7, 57) == world_features(PROMPT, 7, 29)


@pytest.mark.numerical
def test_the_world_s_own_clips_are_at_its_distance():
    """The first draw is at 0 from itself; a third draw is about as far away as the second is; other prompts are not."""
    prompts = held_out_prompts(64)
    worlds = [world_features(prompt, 0, 29) for prompt in prompts]
    own = distances([world[0] for world in worlds], worlds)
    assert_close(own.distance, 0.0, planted=own.floor)
    third = distances([world_features(prompt, 1, 29)[0] for prompt in prompts], worlds)
    other = distances([world_features(prompt, 1, 29)[0] for prompt in ["a red circle over black"] * 64], worlds)
    assert own.floor == third.floor and own.clips == 64
    assert third.distance < 1.5 * own.floor and other.distance > 3 * own.floor
