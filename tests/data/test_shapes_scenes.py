"""Scenes drawn from a seed: fixed for ever, of their split only, inside the picture, moving as their words say."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest

from tests.closeness import assert_close, assert_within
from vdit_cli.data.shapes_prompts import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, caption, is_held_out
from vdit_cli.data.shapes_scenes import FRAMES, RADII, SIDE, Scene, SceneObject, draw_scene, draw_scenes, leave_out

GOLDEN_CAPTIONS = [
    "a large magenta circle bouncing over a gray background, and a small red cross moving right",
    "a small yellow circle moving left over a gray background, and a small red triangle bouncing",
    "a large yellow circle moving right over a navy background, and a large red circle moving left",
]
GOLDEN_NUMBERS = [32.193695068359375, 57.011539459228516, 32.193695068359375, 61.99037551879883, 25.779747009277344]


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    """20,000 training scenes."""
    return draw_scenes(1, 20_000, two_objects=0.3)


def objects_of(scenes: list[Scene]) -> list[SceneObject]:
    """Every object of the scenes."""
    return [shown for scene in scenes for shown in scene.objects]


def test_a_scene_depends_on_seed_and_index_only():
    """Not on how many are drawn, nor from where; sharding and resuming need this."""
    row = draw_scenes(7, 40)
    for index in (0, 1, 17, 39):
        for other in (draw_scene(7, index), draw_scenes(7, 3, start=index)[0]):
            assert caption(other) == caption(row[index])
            for a, b in zip(other.objects, row[index].objects, strict=True):
                assert np.array_equal(a.track, b.track) and np.array_equal(a.radius, b.radius)
    assert [caption(s) for s in draw_scenes(8, 40)] != [caption(s) for s in row]
    assert caption(draw_scene(-1, 10**12)) == caption(draw_scene(-1, 10**12))


@pytest.mark.numerical
def test_scenes_are_the_same_everywhere():
    """Golden: words and numbers of three scenes, which no platform and no numpy may change."""
    scenes = draw_scenes(0, 3, two_objects=0.5)
    assert [caption(scene) for scene in scenes] == GOLDEN_CAPTIONS
    first = scenes[0].objects[0]
    assert_close([*first.track[0], *first.track[-1], first.radius[0]], GOLDEN_NUMBERS, rtol=1e-6)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_every_object_is_of_the_split(split: str):
    """First and second ones."""
    scenes = draw_scenes(5, 4000, split=split, two_objects=0.5)
    held = {is_held_out(shown.colour, shown.shape, shown.motion) for shown in objects_of(scenes)}
    assert held == {split == "held-out"}


def test_an_unknown_split_is_refused():
    """A wrong word must not draw training scenes."""
    with pytest.raises(ValueError, match="held_out"):
        draw_scenes(0, 1, split="held_out")


def test_training_scenes_show_every_pair(many: list[Scene]):
    """No pair of colour, shape, motion, size and background is missing."""
    seen = [(o.size, o.colour, o.shape, o.motion, scene.background) for scene in many for o in scene.objects]
    kinds = (SIZES, COLOURS, SHAPES, MOTIONS, BACKGROUNDS)
    for one, other in combinations(range(5), 2):
        assert {(words[one], words[other]) for words in seen} == set(product(kinds[one], kinds[other]))


def test_words_are_drawn_evenly(many: list[Scene]):
    """Each value within 4 standard deviations of its share; combinations by their chi square."""
    firsts = [scene.objects[0] for scene in many]
    for values in ([o.size for o in firsts], [s.background for s in many]):
        counts = Counter(values)
        share = 1 / len(counts)
        mean, deviation = len(many) * share, (len(many) * share * (1 - share)) ** 0.5
        assert all(mean - 4 * deviation < n < mean + 4 * deviation for n in counts.values())
    triple_counts = Counter((o.colour, o.shape, o.motion) for o in firsts)
    assert len(triple_counts) == 324
    mean = len(many) / 324
    assert sum((n - mean) ** 2 / mean for n in triple_counts.values()) < 323 + 4 * (2 * 323) ** 0.5
    assert 0.285 < sum(len(scene.objects) == 2 for scene in many) / len(many) < 0.315


def test_objects_stay_inside_and_differ_in_colour(many: list[Scene]):
    """The outermost point of every object in every frame, and the two colours of a scene."""
    for scene in many[:3000]:
        assert len({shown.colour for shown in scene.objects}) == len(scene.objects)
        for shown in scene.objects:
            assert shown.track.shape == (FRAMES, 2) and shown.radius.shape == (FRAMES,)
            reach = shown.radius[:, None] * (1.2 if shown.shape == "triangle" else 1)
            assert (shown.track - reach).min() > 1 and (shown.track + reach).max() < SIDE - 1


@pytest.mark.numerical
def test_motions_are_what_their_words_say(many: list[Scene]):
    """Sizes, ways, heights and turns of the design, object by object."""
    for shown in objects_of(many[:3000]):
        x, y = shown.track.astype(np.float64).T
        way = {"left": x[0] - x[-1], "right": x[-1] - x[0], "up": y[0] - y[-1], "down": y[-1] - y[0]}
        low, high = RADII[shown.size]
        if shown.motion in ("growing", "shrinking"):
            ends = shown.radius[[0, -1]] if shown.motion == "growing" else shown.radius[[-1, 0]]
            assert low - 1e-3 <= ends[0] / 0.65 <= high + 1e-3
            assert_close(ends[1] / ends[0], 1.35 / 0.65, rtol=1e-4)
        else:
            assert np.ptp(shown.radius) == 0 and low <= shown.radius[0] <= high
        if shown.motion.startswith("moving"):
            ahead = way.pop(shown.motion.removeprefix("moving "))
            assert 25 < ahead <= 72.001
            assert_within(min(map(abs, way.values())), 1e-3, planted=ahead)
        elif shown.motion == "bouncing":
            assert np.ptp(x) == 0 and 19 < np.ptp(y) <= 40
        elif shown.motion == "circling":
            middle = np.array([(x.max() + x.min()) / 2, (y.max() + y.min()) / 2])
            assert_close(np.hypot(*(shown.track - middle).T), np.full(FRAMES, np.ptp(x) / 2), rtol=0.05)
            assert 13.5 < np.ptp(x) / 2 < 20.5
        else:
            assert np.ptp(x) == np.ptp(y) == 0


def test_second_objects_keep_away():
    """The farthest of several tracks: small pairs hardly ever touch."""
    pairs = [
        scene
        for scene in draw_scenes(2, 4000, two_objects=1.0)
        if all(shown.size == "small" and shown.motion.startswith(("moving", "standing")) for shown in scene.objects)
    ]
    apart = [np.hypot(*(s.objects[0].track - s.objects[1].track).T).min() > 32 for s in pairs]
    assert len(pairs) > 100 and np.mean(apart) > 0.9


@pytest.mark.numerical
def test_captions_leave_out_each_part_at_its_share():
    """Each of the five parts by itself, whatever else is drawn; a larger share leaves out more."""
    scenes = draw_scenes(9, 8000, two_objects=1.0)
    said = leave_out(scenes, 9, 0.15)
    gone = [
        [each is None for each in (one.size, one.motion, shown.background, two.size, two.motion)]
        for shown in said
        for one, two in [shown.objects]
    ]
    assert_within(np.abs(np.mean(gone, axis=0) - 0.15).max(), 0.01, planted=0.15)  # its deviation is .004
    both = np.corrcoef(np.array(gone, dtype=float).T) - np.eye(5)
    assert_within(np.abs(both).max(), 0.06, planted=1)  # one number for two parts
    for scene, shown in zip(scenes, said, strict=True):
        for drawn, words in zip(scene.objects, shown.objects, strict=True):
            assert (words.colour, words.shape) == (drawn.colour, drawn.shape)
            assert words.size in (None, drawn.size) and words.motion in (None, drawn.motion)
    assert leave_out(scenes[700:710], 9, 0.15, start=700) == said[700:710]
    assert leave_out(scenes, 10, 0.15) != said
    more = leave_out(scenes[:500], 9, 0.4)
    assert all(b.background is None for a, b in zip(said[:500], more, strict=True) if a.background is None)
    assert [caption(each) for each in leave_out(scenes[:50], 9, 0.0)] == [caption(each) for each in scenes[:50]]
