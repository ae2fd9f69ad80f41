"""Scenes that a prompt of the shapes world asks for: what it says is so, what it leaves open is drawn.

Numbers come from a hash of (seed, index), as in `shapes_scenes`: scene i of a prompt is the same on any machine.
"""

from __future__ import annotations

import numpy as np

from vdit_cli.artifacts.digest import content_digest
from vdit_cli.data.shapes_prompts import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    ObjectWords,
    PromptReading,
    parse_prompt,
)
from vdit_cli.data.shapes_scenes import (
    CANDIDATE_TRACKS,
    TRACK_NUMBERS,
    Scene,
    farthest_tracks,
    hashed_numbers,
    objects_of,
    pick,
    radius_of,
    tracks_of,
)

_KINDS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "motion": MOTIONS}
_NUMBERS_OF_WORDS = 5
_RADIUS = 4
_TRACKS = 2 * _NUMBERS_OF_WORDS + 1
"""For each of two objects four numbers for its words and one for its radius, one for the background, then tracks."""


def is_of_the_world(prompt: str) -> bool:
    """Whether a prompt asks for one or two objects of different colours, in words of the world only."""
    return _is_shown(parse_prompt(prompt))


def draw_asked(prompt: str, index: int, seed: int = 0) -> Scene:
    """Scene `index` of the endless row that a prompt and `seed` have; any split, as a prompt may ask for any.

    Raises: ValueError for a prompt that is not of the world.
    """
    asked = parse_prompt(prompt)
    if not _is_shown(asked):
        raise ValueError(f"the world has no scene of {prompt!r}")
    row = int(content_digest([seed, prompt])[:16], 16)
    count = _TRACKS + (1 + CANDIDATE_TRACKS) * TRACK_NUMBERS
    numbers = hashed_numbers(row, np.array([index], np.uint64), count)[0]
    taken = {words.colour for words in asked.objects}
    made: list[tuple] = []
    for k, words in enumerate(asked.objects):
        own = numbers[k * _NUMBERS_OF_WORDS : (k + 1) * _NUMBERS_OF_WORDS]
        size, colour, shape, motion = _words(words, own, taken)
        taken.add(COLOURS[colour])
        triple, size_1 = np.array([[colour, shape, motion]]), np.array([size])
        radius = radius_of(size_1, own[_RADIUS : _RADIUS + 1])
        tracks = numbers[None, _TRACKS:]
        if k == 0:
            track, radii = tracks_of(triple, radius, tracks[:, :TRACK_NUMBERS])
        else:
            track, radii = farthest_tracks(triple, radius, tracks[:, TRACK_NUMBERS:], made[0][2])
        made.append((triple, size_1, track, radii))
    background = asked.background or BACKGROUNDS[pick(numbers[2 * _NUMBERS_OF_WORDS], len(BACKGROUNDS))]
    return Scene(background, tuple(objects_of(*each)[0] for each in made))


def _is_shown(asked: PromptReading) -> bool:
    colours = [words.colour for words in asked.objects if words.colour]
    return not asked.unknown and 1 <= len(asked.objects) <= 2 and len(set(colours)) == len(colours)


def _words(words: ObjectWords, numbers: np.ndarray, taken: set[str | None]) -> list[int]:
    """Size, colour, shape and motion by their places; an open colour is none of `taken`."""
    places = []
    for number, (kind, values) in zip(numbers, _KINDS.items(), strict=False):
        free = [value for value in values if kind != "colour" or value not in taken]
        places.append(values.index(getattr(words, kind) or free[pick(number, len(free))]))
    return places
