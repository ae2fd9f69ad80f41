"""Scenes that a prompt of the shapes world asks for: what it says is so, what it leaves open is drawn.

Numbers come from a hash of (seed, index), as in `shapes_scenes`: scene i of a prompt is the same on any machine.
"""

from __future__ import annotations

import numpy as np

from vdit_cli.artifacts.digest import content_digest
from vdit_cli.data import shapes_scenes as drawing
from vdit_cli.data.shapes_prompts import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, ObjectWords, parse_prompt
from vdit_cli.data.shapes_scenes import Scene

_KINDS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}
_NUMBERS_OF_WORDS = 5
_RADIUS = 4
_TRACKS = 2 * _NUMBERS_OF_WORDS + 1
"""For each of two objects four numbers for its words and one for its radius, one for the background, then tracks."""


def is_of_the_world(prompt: str) -> bool:
    """Whether a prompt asks for one or two objects of different colours, in words of the world only."""
    asked = parse_prompt(prompt)
    colours = [words.colour for words in asked.objects if words.colour]
    return not asked.unknown and 1 <= len(asked.objects) <= 2 and len(set(colours)) == len(colours)


def draw_asked(prompt: str, index: int, seed: int = 0) -> Scene:
    """Scene `index` of the endless row that a prompt and `seed` have; any split, as a prompt may ask for any.

    Raises: ValueError for a prompt that is not of the world.
    """
    if not is_of_the_world(prompt):
        raise ValueError(f"the world has no scene of {prompt!r}")
    asked = parse_prompt(prompt)
    row = int(content_digest([seed, prompt])[:16], 16)
    count = _TRACKS + (1 + drawing.CANDIDATE_TRACKS) * drawing._TRACK_NUMBERS
    numbers = drawing._uniform(row, np.array([index], np.uint64), count)[0]
    taken = {words.colour for words in asked.objects}
    made: list[tuple] = []
    for k, words in enumerate(asked.objects):
        own = numbers[k * _NUMBERS_OF_WORDS : (k + 1) * _NUMBERS_OF_WORDS]
        size, colour, shape, motion = _words(words, own, taken)
        taken.add(COLOURS[colour])
        triple, size_1 = np.array([[colour, shape, motion]]), np.array([size])
        radius = drawing._radius(size_1, own[_RADIUS : _RADIUS + 1])
        tracks = numbers[None, _TRACKS:]
        if k == 0:
            track, radii = drawing._move(triple, radius, tracks[:, : drawing._TRACK_NUMBERS])
        else:
            track, radii = drawing._farthest_track(triple, radius, tracks[:, drawing._TRACK_NUMBERS :], made[0][2])
        made.append((triple, size_1, track, radii))
    background = asked.background or _pick(BACKGROUNDS, numbers[2 * _NUMBERS_OF_WORDS])
    return Scene(background, tuple(drawing._objects(*each)[0] for each in made))


def _words(words: ObjectWords, numbers: np.ndarray, taken: set[str | None]) -> list[int]:
    """Size, colour, shape and motion by their places; an open colour is none of `taken`."""
    places = []
    for number, (kind, values) in zip(numbers, _KINDS.items(), strict=False):
        free = tuple(value for value in values if kind != "colour" or value not in taken)
        places.append(values.index(getattr(words, kind) or _pick(free, number)))
    return places


def _pick(values: tuple[str, ...], number: float) -> str:
    return values[int(number * len(values))]
