"""Scenes for a prompt: what it says is kept, what it leaves open is drawn, evenly and the same every time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vdit_cli.data import shapes_asked
from vdit_cli.data.shapes_asked import draw_asked, is_of_the_world
from vdit_cli.data.shapes_prompts import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, held_out_prompts, parse_prompt
from vdit_cli.data.shapes_scenes import SIDE
from vdit_cli.data.shapes_world import caption


def test_what_is_said_is_so():
    """Whole sentences come back as their scene's caption, with one object and with two, in any split."""
    for prompt in [*held_out_prompts(40), *held_out_prompts(40, two_objects=True)]:
        assert caption(draw_asked(prompt, 3)) == prompt


def test_a_prompt_is_parsed_once(monkeypatch: pytest.MonkeyPatch):
    """For its scene, the check included."""
    parsed: list[str] = []
    monkeypatch.setattr(shapes_asked, "parse_prompt", lambda prompt: parsed.append(prompt) or parse_prompt(prompt))
    draw_asked("a red ring", 0)
    assert parsed == ["a red ring"]


def test_what_is_left_open_is_drawn():
    """Every value of each kind comes, about as often; a second object never has the first one's colour."""
    scenes = [draw_asked("a ring and a cross", index) for index in range(800)]
    first, second = zip(*(scene.objects for scene in scenes), strict=True)
    assert {one.shape for one in first} == {"ring"} and {one.shape for one in second} == {"cross"}
    for values, found in (
        (SIZES, [one.size for one in first]),
        (COLOURS, [one.colour for one in first]),
        (COLOURS, [one.colour for one in second]),
        (MOTIONS, [one.motion for one in second]),
        (BACKGROUNDS, [scene.background for scene in scenes]),
    ):
        counts = Counter(found)
        assert set(counts) == set(values) and min(counts.values()) > 0.6 * 800 / len(values)
    assert all(one.colour != other.colour for one, other in zip(first, second, strict=True))
    red_second = [draw_asked("a circle, and a red square", index) for index in range(60)]
    assert all(scene.objects[0].colour != "red" == scene.objects[1].colour for scene in red_second)
    assert {one.shape for one in draw_asked("a red thing over".replace("thing ", ""), 0).objects} <= set(SHAPES)


def test_scenes_differ_by_index_seed_and_prompt_only():
    """The same again is the same; objects stay inside the picture."""
    prompt = "a small red circle bouncing over a navy background"
    tracks = [
        draw_asked(*each).objects[0].track
        for each in ((prompt, 0, 1), (prompt, 1, 1), (prompt, 0, 2), (prompt.replace("red", "blue"), 0, 1))
    ]
    assert all(not np.array_equal(a, b) for k, a in enumerate(tracks) for b in tracks[:k])
    again = draw_asked(prompt, 0, 1)
    assert np.array_equal(again.objects[0].track, tracks[0])
    for index in range(100):
        for one in draw_asked("a circle and a cross", index).objects:
            assert (one.track.min(axis=1) >= one.radius).all() and (one.track.max(axis=1) <= SIDE - one.radius).all()


@pytest.mark.parametrize("prompt", ["", "two cats", "a red circle on Mars", "a red circle and a red ring", "over navy"])
def test_other_prompts_have_no_scene(prompt: str):
    """No object, unknown words, two objects of one colour."""
    assert not is_of_the_world(prompt)
    with pytest.raises(ValueError, match="no scene"):
        draw_asked(prompt, 0)
