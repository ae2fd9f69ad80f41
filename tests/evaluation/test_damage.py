"""Planted damage: each kind moves the numbers that tell of it, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tests.closeness import assert_close
from tests.evaluation.clips import pixels
from vdit_cli.data.shapes_asked import draw_asked
from vdit_cli.data.shapes_prompts import held_out_prompts
from vdit_cli.data.shapes_scenes import Scene
from vdit_cli.evaluation.comparison import Comparison
from vdit_cli.evaluation.frechet import DRAWS, distances, world_features
from vdit_cli.evaluation.score import CHECKS, Score, score_tensors

COUNT = 40
PROMPTS = held_out_prompts(COUNT)
TWO = held_out_prompts(COUNT, two_objects=True)


def scenes_of(prompts: Sequence[str]) -> list[Scene]:
    """What the world draws for the prompts: at a distance of 0 to itself."""
    return [draw_asked(prompt, 0, DRAWS[0]) for prompt in prompts]


@pytest.fixture(scope="module")
def whole() -> Score:
    """The score of 40 right clips with one object."""
    return score_tensors([pixels(scene) for scene in scenes_of(PROMPTS)], PROMPTS)


def damaged(score: Score, prompts: Sequence[str], damage: Callable[[Scene], np.ndarray], every: int) -> Comparison:
    """The same clips with every `every`th one damaged, against the whole ones."""
    scenes = scenes_of(prompts)
    broken = score_tensors([damage(scene) for scene in scenes[::every]], prompts[::every])
    clips = list(score.clips)
    clips[::every] = [replace(clip, name=old.name) for clip, old in zip(broken.clips, clips[::every], strict=True)]
    return Comparison(Score(tuple(clips)), score, [(at, at) for at in range(len(clips))], {}, None)


def moved(comparison: Comparison) -> set[str]:
    """The checks, and the share of unreadable clips, that differ at all."""
    differences = comparison.differences
    return {name for name in (*CHECKS, "unreadable") if name in differences and differences[name].value != 0}


def other_colour(scene: Scene) -> np.ndarray:
    """The object in another colour."""
    one = scene.objects[0]
    return pixels(replace(scene, objects=(replace(one, colour="red" if one.colour != "red" else "green"),)))


def smeared(scene: Scene) -> np.ndarray:
    """The object two pixels wider, in every other frame."""
    video = pixels(scene)
    empty = pixels(replace(scene, objects=()))
    own = (video != empty).any(axis=-1)
    aside = np.roll(own, 2, axis=2) & ~own
    aside[1::2] = False
    video[aside] = np.roll(video, 2, axis=2)[aside]
    return video


def flickering(scene: Scene) -> np.ndarray:
    """Every other frame a little darker."""
    video = pixels(scene)
    video[::2] = video[::2] // 20 * 19
    return video


def drifting(scene: Scene) -> np.ndarray:
    """Ever darker, by 6 % in all."""
    dimmer = np.linspace(1, 0.94, 29)[:, None, None, None]
    return (pixels(scene) * dimmer).round().astype(np.uint8)


@pytest.mark.numerical
def test_a_wrong_colour_in_a_tenth(whole: Score):
    """Colour, all five and everything fall by .1 and the Frechet distance rises; all else stays."""
    found = damaged(whole, PROMPTS, other_colour, every=10)
    assert moved(found) == {"colour", "all five", "everything"}
    for name in moved(found):
        each = found.differences[name]
        assert each.value == -0.1 and each.is_off_zero and found.a.counts[name] == (36, 40)
    assert not found.differences["overlap"].is_off_zero
    assert_close(found.a.measures["overlap"], whole.measures["overlap"], atol=1e-3, planted=0.7)
    worlds = [world_features(prompt, 0, 29) for prompt in PROMPTS]
    own, far = (distances([clip.seen.features for clip in side.clips], worlds) for side in (whole, found.a))
    assert_close(own.distance, 0.0, planted=far.distance)
    assert own.floor == far.floor


def test_an_outline_that_jitters(whole: Score):
    """The jitter and the IoU tell, no check does."""
    found = damaged(whole, PROMPTS, smeared, every=4)
    assert moved(found) == set()
    assert found.differences["jitter"].interval[0] > 0 > found.differences["overlap"].interval[1]


def test_brightness_that_flickers_or_drifts(whole: Score):
    """Flicker tells of the one alone; motion class, all other checks and the IoU's jitter of neither."""
    found = damaged(whole, PROMPTS, flickering, every=4)
    assert moved(found) == set()
    assert found.differences["flicker"].interval[0] > 0
    drift = damaged(whole, PROMPTS, drifting, every=4)
    assert moved(drift) == set()
    rises = {name: drift.differences[name].value for name in ("frame motion", "flicker")}
    assert rises["frame motion"] > 0 and rises["flicker"] < 0.2 * found.differences["flicker"].value


def test_a_second_object_that_is_missing():
    """The number of objects, the second one and everything are wrong; the first one's five words are not."""
    whole = score_tensors([pixels(scene) for scene in scenes_of(TWO[:20])], TWO[:20])
    found = damaged(whole, TWO[:20], lambda scene: pixels(replace(scene, objects=scene.objects[:1])), every=5)
    assert moved(found) == {"objects", "second object", "everything"}
    assert found.differences["objects"].value == -0.2


def test_motion_by_its_class(whole: Score):
    """Clips that stand still are wrong in the classes that they were asked for, and only there."""

    def stopped(scene: Scene) -> np.ndarray:
        return np.repeat(pixels(scene)[:1], 29, axis=0)

    found = damaged(whole, PROMPTS, stopped, every=10)
    wrong = {clip.prompt for clip in found.a.clips if not clip.right["motion"]}
    classes = {name for name, each in found.differences.items() if name.startswith("motion: ") and each.value}
    assert len(wrong) in (3, 4) and classes
    assert all(any(name.removeprefix("motion: ") in prompt for prompt in wrong) for name in classes)
    of = {name: each.clips for name, each in found.a.estimates.items() if name.startswith("motion: ")}
    assert sum(of.values()) == COUNT
    assert all(
        sum(name.removeprefix("motion: ") in prompt for prompt in PROMPTS) == count for name, count in of.items()
    )
