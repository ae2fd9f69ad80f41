"""The language of the shapes world: words, grammar, reading back, held-out combinations, prompts to test with."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdit_cli.data.shapes_prompts import (
    BACKGROUNDS,
    COLOURS,
    EXAMPLE_PROMPT,
    LONGEST_CAPTION,
    MOTIONS,
    SHAPES,
    SIZES,
    WORDS,
    ObjectWords,
    PromptReading,
    Said,
    caption,
    held_out_prompts,
    is_held_out,
    parse_prompt,
    partial_prompts,
    prompts,
    tokens,
    triples,
)

OBJECTS = st.builds(
    ObjectWords, st.sampled_from(SIZES), st.sampled_from(COLOURS), st.sampled_from(SHAPES), st.sampled_from(MOTIONS)
)


def test_the_longest_caption():
    """By brute force over what adds words: the motions of one object and of two."""
    one, two = (max(map(len, map(tokens, map(said, product(MOTIONS, repeat=count))))) for count in (1, 2))
    assert one < two and two + 1 == LONGEST_CAPTION


def said(motions: tuple[str, ...]) -> str:
    """The caption of objects with these motions."""
    things = tuple(ObjectWords(SIZES[0], COLOURS[i], SHAPES[0], motion) for i, motion in enumerate(motions))
    return caption(PromptReading((), (), things, BACKGROUNDS[0]))


def test_the_vocabulary_is_the_grammar_and_nothing_else():
    """36 tokens, the comma among them."""
    assert len(WORDS) == len(set(WORDS)) == 36
    said = {
        token
        for one in product(SIZES, COLOURS, SHAPES, MOTIONS)
        for token in tokens(caption(PromptReading((), (), (ObjectWords(*one),) * 2, "gray")))
    }
    assert said | set(BACKGROUNDS) == set(WORDS)


@given(st.lists(OBJECTS, min_size=1, max_size=2), st.sampled_from(BACKGROUNDS))
def test_a_caption_is_read_back_as_it_was(objects: list[ObjectWords], background: str):
    """Round trip, for any two objects, equal ones too."""
    sentence = caption(PromptReading((), (), tuple(objects), background))
    read = parse_prompt(sentence)
    assert read.objects == tuple(objects)
    assert read.background == background
    assert read.unknown == () and read.is_exact
    assert caption(read) == sentence


def test_the_grammar_word_by_word():
    """One sentence of each form, as the design writes it."""
    one = ObjectWords("large", "red", "circle", "moving right")
    two = ObjectWords("small", "blue", "ring", "bouncing")
    assert caption(PromptReading((), (), (one,), "black")) == EXAMPLE_PROMPT
    assert EXAMPLE_PROMPT == "a large red circle moving right over a black background"
    assert caption(PromptReading((), (), (one, two), "checkered")) == (
        "a large red circle moving right over a checkered background, and a small blue ring bouncing"
    )


def test_a_caption_leaves_out_what_is_open():
    """By hand, of one and of two objects; an object without a shape can't be said."""
    one, two = ObjectWords(None, "red", "circle", "moving right"), ObjectWords("small", "blue", "ring", None)
    assert caption(Said((one,), "black")) == "a red circle moving right over a black background"
    assert caption(Said((two,), None)) == "a small blue ring"
    assert caption(Said((one, two), None)) == "a red circle moving right, and a small blue ring"
    with pytest.raises(KeyError, match="shape"):
        caption(Said((ObjectWords("small", "blue"),), None))


def test_partial_prompts_leave_out_each_choice_as_often():
    """Seven choices of one to three parts; what is left is a held-out scene's, and read back as it was said."""
    made = partial_prompts(700, seed=4)
    assert made[:70] == partial_prompts(70, seed=4) != partial_prompts(70, seed=5)
    gone: Counter[tuple[str, ...]] = Counter()
    for prompt in made:
        read = parse_prompt(prompt)
        (shown,) = read.objects
        parts = {"size": shown.size, "motion": shown.motion, "background": read.background}
        gone[tuple(name for name, word in parts.items() if word is None)] += 1
        assert shown.colour and shown.shape and not read.unknown and caption(read) == prompt
        assert shown.motion is None or is_held_out(shown.colour, shown.shape, shown.motion)
    assert len(gone) == 7 and set(gone.values()) == {100} and () not in gone


@pytest.mark.parametrize(
    ("prompt", "objects", "background", "unknown"),
    [
        ("A LARGE Red circle!", [ObjectWords("large", "red", "circle", None)], None, ()),
        ("red ring going up, on navy", [ObjectWords(None, "red", "ring", "moving up")], "navy", ("going", "on")),
        (
            "a cyan cross still and a white square",
            [ObjectWords(None, "cyan", "cross", "standing still"), ObjectWords(None, "white", "square", None)],
            None,
            (),
        ),
        (
            "blue circle green square",
            [ObjectWords(None, "blue", "circle"), ObjectWords(None, "green", "square")],
            None,
            (),
        ),
        ("a cat's purple cat's hat", [], None, ("cat's", "purple", "hat")),
        ("", [], None, ()),
        ("moving", [], None, ()),
        ("ein Kreis über 北京", [], None, ("ein", "kreis", "über", "北京")),
    ],
)
def test_free_prompts(prompt: str, objects: list[ObjectWords], background: str | None, unknown: tuple[str, ...]):
    """Gaps, other orders and unknown words are borne, and told."""
    read = parse_prompt(prompt)
    assert read.objects == tuple(objects)
    assert read.background == background
    assert read.unknown == unknown
    assert not read.is_exact


def test_extra_words_of_the_vocabulary_make_a_prompt_inexact():
    """The attributes are all there, but the sentence is not one of the grammar."""
    assert parse_prompt(EXAMPLE_PROMPT).is_exact
    assert not parse_prompt(EXAMPLE_PROMPT + " over").is_exact
    assert parse_prompt(EXAMPLE_PROMPT.upper() + ".").is_exact


def test_36_of_360_combinations_are_held_out():
    """By the rule (colour + 2 shape + 3 motion) mod 10 = 0, counted by hand."""
    every = list(product(range(8), range(5), range(9)))
    held = [(COLOURS[c], SHAPES[s], MOTIONS[m]) for c, s, m in every if (c + 2 * s + 3 * m) % 10 == 0]
    assert (len(every), len(held)) == (360, 36)
    assert triples("held-out") == held
    assert len(triples("train")) == 324 and set(triples("train")).isdisjoint(held)
    assert is_held_out("red", "circle", "standing still") and not is_held_out("green", "circle", "standing still")


def test_no_pair_of_attributes_is_missing_from_training():
    """Every colour with every shape, every colour with every motion, every shape with every motion."""
    kinds = (COLOURS, SHAPES, MOTIONS)
    for one, other in combinations(range(3), 2):
        seen = {(triple[one], triple[other]) for triple in triples("train")}
        assert seen == set(product(kinds[one], kinds[other]))


@pytest.mark.parametrize("two_objects", [False, True])
@pytest.mark.parametrize("split", ["train", "held-out"])
def test_prompts_keep_to_their_split(split: str, two_objects: bool):
    """Every object of a prompt, and two objects differ in colour."""
    for prompt in prompts(split, 400, seed=3, two_objects=two_objects):
        read = parse_prompt(prompt)
        assert read.is_exact and len(read.objects) == 1 + two_objects
        assert {is_held_out(shown.colour, shown.shape, shown.motion) for shown in read.objects} == {split == "held-out"}
        assert len({shown.colour for shown in read.objects}) == len(read.objects)


def test_held_out_prompts_are_balanced_and_fixed():
    """360 different ones before any recurs; the same for any count; another seed, another order."""
    many = held_out_prompts(512)
    assert len(many) == 512 and len(set(many[:360])) == 360
    assert held_out_prompts(100) == many[:100]
    assert held_out_prompts(100, seed=1) != many[:100]
    assert many[0] == "a large cyan ring moving up over a beige background"
