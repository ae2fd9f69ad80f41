"""The language of the shapes world: its words, its grammar, which combinations are held out, and prompts to test with.

No torch. A prompt of the world is
`a {size} {colour} {shape} {motion} over a {background} background`, with `, and a {size} {colour} {shape} {motion}`
behind it when there is a second object. Size, motion and background may be left out: the world then shows any.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal, Protocol

import numpy as np

from vdit_cli.backbones.prompt_form import PromptForm, tokens

Split = Literal["train", "held-out"]

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan", "orange", "white")
SHAPES = ("circle", "square", "triangle", "ring", "cross")
MOTIONS = (
    "standing still",
    "moving left",
    "moving right",
    "moving up",
    "moving down",
    "bouncing",
    "circling",
    "growing",
    "shrinking",
)
BACKGROUNDS = ("black", "gray", "navy", "beige", "checkered")
ATTRIBUTES = ("size", "colour", "shape", "motion", "background")
EXAMPLE_PROMPT = "a large red circle moving right over a black background"
PROMPT_FORM = PromptForm(
    sentence="a [{size} ]{colour} {shape}[ {motion}][ over a {background} background]",
    second=", and a [{size} ]{colour} {shape}[ {motion}]",
    parts={"size": SIZES, "colour": COLOURS, "shape": SHAPES, "motion": MOTIONS, "background": BACKGROUNDS},
    example=EXAMPLE_PROMPT,
    different=("colour",),
)
"""What a model of this world can read."""
OPTIONAL_PARTS = ("size", "motion", "background")
"""What a caption may leave out; an object always has its colour and shape."""

LONGEST_CAPTION = 19
"""Tokens of two objects whose motions have two words each, the end sign included."""

_GRAMMAR = ("a", *SIZES, *COLOURS, *SHAPES, *" ".join(MOTIONS).split(), "over", *BACKGROUNDS, "background", "and", ",")
WORDS: tuple[str, ...] = tuple(dict.fromkeys(_GRAMMAR))
"""Every token of the language, the comma included, in a fixed order; 36 of them."""

_MOTION_BY_WORD = {word: motion for motion in MOTIONS for word in motion.split() if word != "moving"}


class Captioned(Protocol):
    """What can be put into words: a drawn `Scene`, what is `Said` of it, or the `PromptReading` of a prompt."""

    @property
    def objects(self) -> tuple:
        """One or two things with `size`, `colour`, `shape` and `motion`."""

    @property
    def background(self) -> str | None:
        """One of BACKGROUNDS."""


@dataclass(frozen=True)
class ObjectWords:
    """The four words for one object; None where a prompt leaves one open."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None
    motion: str | None = None


@dataclass(frozen=True)
class Said:
    """What a caption tells of a scene; None for what it leaves out."""

    objects: tuple[ObjectWords, ...]
    background: str | None


@dataclass(frozen=True)
class PromptReading:
    """A prompt taken apart: tokens in WORDS, words in no vocabulary, and the scene that it asks for."""

    known: tuple[str, ...]
    unknown: tuple[str, ...]
    objects: tuple[ObjectWords, ...]
    background: str | None

    @property
    def is_exact(self) -> bool:
        """Whether the prompt is a sentence of the grammar, with nothing left open and nothing besides."""
        whole = (
            self.background is not None and bool(self.objects) and all(len(_told(each)) == 4 for each in self.objects)
        )
        return whole and not self.unknown and tuple(tokens(caption(self))) == self.known


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether a combination is never trained on: (colour + 2 shape + 3 motion) mod 10 = 0 by index; 36 of the 360."""
    return (COLOURS.index(colour) + 2 * SHAPES.index(shape) + 3 * MOTIONS.index(motion)) % 10 == 0


def triples(split: Split) -> list[tuple[str, str, str]]:
    """The (colour, shape, motion) combinations of a split, in the order of the lists: 324 of `train`, 36 `held-out`."""
    return [triple for triple in product(COLOURS, SHAPES, MOTIONS) if is_held_out(*triple) == (split == "held-out")]


def caption(scene: Captioned) -> str:
    """The sentence of the grammar that describes `scene`, without what is None of it.

    Raises KeyError for an object without colour or shape.
    """
    ground = {"background": scene.background} if scene.background is not None else {}
    return PROMPT_FORM.spelled(*(_told(shown) | ground for shown in scene.objects))


def parse_prompt(prompt: str) -> PromptReading:
    """Read a prompt back into the attributes of a scene; free word order, gaps and unknown words are borne.

    A second object begins at `and`, or where a kind of word comes that the object at hand has already.
    """
    found = tokens(prompt)
    objects: list[dict[str, str]] = [{}]
    background = None
    for token in found:
        if token in BACKGROUNDS:
            background = background or token
        elif token == "and" and objects[-1]:
            objects.append({})
        for kind, value in _object_words(token):
            if objects[-1].get(kind, value) != value:
                objects.append({})
            objects[-1][kind] = value
    return PromptReading(
        known=tuple(token for token in found if token in WORDS),
        unknown=tuple(dict.fromkeys(token for token in found if token not in WORDS)),
        objects=tuple(ObjectWords(**words) for words in objects if words),
        background=background,
    )


def prompts(split: Split, count: int, seed: int = 0, two_objects: bool = False) -> list[str]:
    """`count` prompts of a split to evaluate with, balanced: each different one once, shuffled, before any recurs.

    With `two_objects` each prompt has two objects of different colours, both of the split.
    Prompt i does not depend on `count`.
    """
    return [
        caption(Said(*each))
        for each in _asked(split, count, np.random.default_rng([seed, int(two_objects)]), two_objects)
    ]


def held_out_prompts(count: int, seed: int = 0, two_objects: bool = False) -> list[str]:
    """`count` prompts whose combinations no training scene ever shows; 360 different ones with a single object."""
    return prompts("held-out", count, seed, two_objects)


def partial_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` held-out prompts of one object that leave out one to three of OPTIONAL_PARTS, each choice as often.

    Prompt i does not depend on `count`.
    """
    generator = np.random.default_rng([seed, 2])
    choices = [gone for number in (1, 2, 3) for gone in combinations(OPTIONAL_PARTS, number)]
    asked = _asked("held-out", count, generator, two_objects=False)
    return [
        caption(without(Said(*each), {(0, part) for part in choices[i % len(choices)]})) for i, each in enumerate(asked)
    ]


def without(scene: Captioned, gone: Collection[tuple[int, str]]) -> Said:
    """What is said of `scene` but for the parts `gone`, each (object, part); the background is of the first object."""
    objects = tuple(
        ObjectWords(**{kind: word for kind, word in _told(shown).items() if (number, kind) not in gone})
        for number, shown in enumerate(scene.objects)
    )
    return Said(objects, None if (0, "background") in gone else scene.background)


def _asked(
    split: Split, count: int, generator: np.random.Generator, two_objects: bool
) -> list[tuple[tuple[ObjectWords, ...], str]]:
    """Objects and background of `count` prompts, balanced as `prompts` says."""
    ones = [
        (ObjectWords(size, *triple), background)
        for size, triple, background in product(SIZES, triples(split), BACKGROUNDS)
    ]
    made: list[tuple[tuple[ObjectWords, ...], str]] = []
    while len(made) < count:
        for place in generator.permutation(len(ones)):
            first, background = ones[place]
            made.append(((first, _second(ones, first, generator)) if two_objects else (first,), background))
    return made[:count]


def _told(shown: ObjectWords) -> dict[str, str]:
    """Those of the four words for an object that are not left open, by what they tell."""
    return {kind: word for kind in ATTRIBUTES[:4] if (word := getattr(shown, kind)) is not None}


def _object_words(token: str) -> Iterable[tuple[str, str]]:
    for kind, values in (("size", SIZES), ("colour", COLOURS), ("shape", SHAPES)):
        if token in values:
            yield kind, token
    if token in _MOTION_BY_WORD:
        yield "motion", _MOTION_BY_WORD[token]


def _second(ones: list[tuple[ObjectWords, str]], first: ObjectWords, generator: np.random.Generator) -> ObjectWords:
    while True:
        other, _ = ones[int(generator.integers(len(ones)))]
        if other.colour != first.colour:
            return other
