"""Scenes of the shapes world drawn from a seed: which objects, and where each one is in every frame. No torch.

Letters: n scenes at once, T pixel frames. Lengths are pixels of a 128 x 128 picture, x to the right, y down, the
middle of the top left pixel at (.5, .5).

Numbers come from a hash of (seed, scene index, place), not from a generator object: scene i is the same whatever else
is drawn, on any platform and numpy version, and thousands of scenes are drawn at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vdit_cli.data.shapes_prompts import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    Said,
    Split,
    triples,
    without,
)

FRAMES = 29
SIDE = 128.0
MARGIN = 1.5
COLOUR_RGB = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.70, 0.15),
    "blue": (0.10, 0.25, 1.00),
    "yellow": (1.00, 0.90, 0.10),
    "magenta": (0.90, 0.10, 0.85),
    "cyan": (0.10, 0.85, 0.90),
    "orange": (1.00, 0.50, 0.05),
    "white": (1.00, 1.00, 1.00),
}
BACKGROUND_RGB = {
    "black": ((0.0, 0.0, 0.0),) * 2,
    "gray": ((0.45, 0.45, 0.45),) * 2,
    "navy": ((0.05, 0.07, 0.35),) * 2,
    "beige": ((0.82, 0.72, 0.55),) * 2,
    "checkered": ((0.22, 0.22, 0.22), (0.62, 0.62, 0.62)),
}
"""The colours of the even and of the odd fields of a board of CHECKER pixels a field."""
CHECKER = 16.0
RADII = {"small": (13.0, 16.0), "large": (24.0, 29.0)}
SQUARE_HALF_SIDE = 0.86
TRIANGLE_CIRCUMRADIUS = 1.2
RING_HOLE = 0.55
CROSS_ARM_HALF_WIDTH = 0.34
GROWTH = (0.65, 1.35)
LONGEST_WAY = 72.0
CANDIDATE_TRACKS = 8
TRACK_NUMBERS = 6
"""So many tracks are drawn for a second object, and so many numbers for a track."""

_PLACES = {"triple": 0, "size": 1, "background": 2, "radius": 3, "has second": 4, "second triple": 5, "second size": 6}
_SECOND_RADIUS = 7
_FIRST_TRACK = 8
_SECOND_TRACKS = _FIRST_TRACK + TRACK_NUMBERS
_NUMBERS = _SECOND_TRACKS + CANDIDATE_TRACKS * TRACK_NUMBERS
_LEFT_OUT = ((0, "size"), (0, "motion"), (0, "background"), (1, "size"), (1, "motion"))
"""What a caption may leave out, object and part; each has a number of the scene's behind the _NUMBERS."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object: its four words, its centre `track` (T, 2; x then y) and its `radius` (T), both float32 pixels."""

    size: str
    colour: str
    shape: str
    motion: str
    track: np.ndarray
    radius: np.ndarray


@dataclass(frozen=True, eq=False)
class Scene:
    """One or two objects over a background; the first object lies on top of the second."""

    background: str
    objects: tuple[SceneObject, ...]


def draw_scenes(seed: int, count: int, split: Split = "train", two_objects: float = 0.3, start: int = 0) -> list[Scene]:
    """Scenes `start` to `start + count` of the endless row that belongs to `seed`.

    A share `two_objects` of them has a second object of another colour. Every object is of the split: a training scene
    shows no held-out combination.
    """
    numbers = hashed_numbers(seed, np.arange(start, start + count, dtype=np.uint64), _NUMBERS)
    table, by_colour, colour_counts = _triple_tables(split)
    first = table[pick(numbers[:, _PLACES["triple"]], len(table))]
    own = first[:, 0]
    second_place = pick(numbers[:, _PLACES["second triple"]], colour_counts[own])
    second = table[by_colour[own, second_place]]
    first_size = pick(numbers[:, _PLACES["size"]], len(SIZES))
    second_size = pick(numbers[:, _PLACES["second size"]], len(SIZES))
    first_radius = radius_of(first_size, numbers[:, _PLACES["radius"]])
    second_radius = radius_of(second_size, numbers[:, _SECOND_RADIUS])
    first_track, first_radii = tracks_of(first, first_radius, numbers[:, _FIRST_TRACK:_SECOND_TRACKS])

    background = pick(numbers[:, _PLACES["background"]], len(BACKGROUNDS))
    has_second = numbers[:, _PLACES["has second"]] < two_objects
    pairs = np.flatnonzero(has_second)
    second_track, second_radii = farthest_tracks(
        second[pairs], second_radius[pairs], numbers[pairs, _SECOND_TRACKS:], first_track[pairs]
    )
    tops = objects_of(first, first_size, first_track, first_radii)
    unders = dict(
        zip(pairs.tolist(), objects_of(second[pairs], second_size[pairs], second_track, second_radii), strict=True)
    )
    return [
        Scene(BACKGROUNDS[background[i]], (top, unders[i]) if i in unders else (top,)) for i, top in enumerate(tops)
    ]


def leave_out(scenes: Sequence[Scene], seed: int, share: float, start: int = 0) -> list[Said]:
    """What captions tell of scenes `start` on of a seed: each size, motion and background is left out at this `share`.

    Which ones is as fixed as the scenes are: it does not hang on what else is drawn, and a larger share leaves out
    what a smaller one does too.
    """
    indices = np.arange(start, start + len(scenes), dtype=np.uint64)
    numbers = hashed_numbers(seed, indices, _NUMBERS + len(_LEFT_OUT))[:, _NUMBERS:]
    return [
        without(scene, {part for part, number in zip(_LEFT_OUT, row, strict=True) if number < share})
        for scene, row in zip(scenes, numbers, strict=True)
    ]


def draw_scene(seed: int, index: int, split: Split = "train", two_objects: float = 0.3) -> Scene:
    """Scene `index` of the row that belongs to `seed`, equal to `draw_scenes(seed, index + 1, ...)[index]`."""
    return draw_scenes(seed, 1, split, two_objects, start=index)[0]


def hashed_numbers(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """Numbers in [0, 1), (n, count) float64: the SplitMix64 finaliser over a counter (Steele et al., OOPSLA 2014)."""
    stream = _mix(np.array([seed & (2**64 - 1)], dtype=np.uint64))
    scene = _mix(stream ^ _mix(indices + np.uint64(0x632BE59BD9B4E019)))
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_mix(scene[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def pick(number: np.ndarray, choices: int | np.ndarray) -> np.ndarray:
    """The places, 0 to `choices` - 1, that numbers in [0, 1) stand for, evenly."""
    return np.floor(number * choices).astype(np.int64)


@cache
def _triple_tables(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Index triples of a split (count, 3), and for each colour the places and number of those of another colour."""
    if split not in ("train", "held-out"):
        raise ValueError(f"split {split!r} is neither 'train' nor 'held-out'")
    table = np.array([(COLOURS.index(c), SHAPES.index(s), MOTIONS.index(m)) for c, s, m in triples(split)])
    others = [np.flatnonzero(table[:, 0] != colour) for colour in range(len(COLOURS))]
    counts = np.array([len(places) for places in others])
    padded = np.stack([np.pad(places, (0, counts.max() - len(places))) for places in others])
    return table, padded, counts


def radius_of(size: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Pixels from the middle to the rim of objects of the sizes at these places of SIZES, by a number each."""
    low, high = (np.array([RADII[name][end] for name in SIZES]) for end in (0, 1))
    return low[size] + number * (high - low)[size]


def tracks_of(triple: np.ndarray, radius: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tracks (n, T, 2) and radii (n, T) of objects from 6 numbers each, always inside the picture."""
    name = np.array(MOTIONS)[triple[:, 2]][:, None]
    along = np.arange(FRAMES) / (FRAMES - 1)
    low, high = GROWTH
    factor = np.select(
        [name == "growing", name == "shrinking"], [low + (high - low) * along, high - (high - low) * along], 1.0
    )
    radii = radius[:, None] * factor
    reach = np.where(triple[:, 1] == SHAPES.index("triangle"), TRIANGLE_CIRCUMRADIUS, 1.0) * radii.max(axis=1)
    free = SIDE - 2 * (reach + MARGIN)

    amount, turn, beat, sense, right, down = (numbers[:, i] for i in range(TRACK_NUMBERS))
    way = np.minimum((0.55 + 0.45 * amount) * free, LONGEST_WAY)[:, None] * along
    hop = _hop((22 + 18 * amount)[:, None], (16 + 6 * beat)[:, None], turn[:, None])
    angle = (
        2
        * np.pi
        * (np.where(sense < 0.5, -1, 1)[:, None] * np.arange(FRAMES) / (24 + 4 * beat)[:, None] + turn[:, None])
    )
    swing = (14 + 6 * amount)[:, None]
    x = np.select(
        [name == "moving left", name == "moving right", name == "circling"], [-way, way, swing * np.cos(angle)], 0.0
    )
    y = np.select(
        [name == "moving up", name == "moving down", name == "bouncing", name == "circling"],
        [-way, way, hop, swing * np.sin(angle)],
        0.0,
    )
    return np.stack([_place(x, reach, right), _place(y, reach, down)], axis=-1), radii


def _hop(height: np.ndarray, period: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """Height over time of something thrown up again and again, negative because y points down."""
    part = (np.arange(FRAMES) / period + phase) % 1.0
    return -height * 4 * part * (1 - part)


def _place(moved: np.ndarray, reach: np.ndarray, number: np.ndarray) -> np.ndarray:
    lowest = MARGIN + reach - moved.min(axis=1)
    highest = SIDE - MARGIN - reach - moved.max(axis=1)
    return moved + (lowest + number * (highest - lowest))[:, None]


def farthest_tracks(
    triple: np.ndarray, radius: np.ndarray, numbers: np.ndarray, first_track: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of CANDIDATE_TRACKS tracks an object, the one whose nearest approach to the first object is the widest."""
    n = len(triple)
    track, radii = tracks_of(
        np.repeat(triple, CANDIDATE_TRACKS, axis=0),
        np.repeat(radius, CANDIDATE_TRACKS),
        numbers.reshape(n * CANDIDATE_TRACKS, TRACK_NUMBERS),
    )
    track = track.reshape(n, CANDIDATE_TRACKS, FRAMES, 2)
    approach = np.square(track - first_track[:, None]).sum(axis=-1).min(axis=-1)
    best = approach.argmax(axis=1)
    return track[np.arange(n), best], radii.reshape(n, CANDIDATE_TRACKS, FRAMES)[:, 0]


def objects_of(triple: np.ndarray, size: np.ndarray, track: np.ndarray, radii: np.ndarray) -> list[SceneObject]:
    """Objects of the words at (colour, shape, motion) `triple` and `size`, each with its track and its radii."""
    track, radii = track.astype(np.float32), radii.astype(np.float32)
    return [
        SceneObject(SIZES[size[i]], COLOURS[colour], SHAPES[shape], MOTIONS[motion], track[i], radii[i])
        for i, (colour, shape, motion) in enumerate(triple.tolist())
    ]
