"""The sentences that a model knows: what a prompt lacks, and the nearest sentence that works."""

from __future__ import annotations

import json

import pytest

from vdit_cli.backbones.prompt_form import PromptForm
from vdit_cli.data.shapes_prompts import PROMPT_FORM, parse_prompt, partial_prompts, prompts
from vdit_cli.errors import EvditError

ONE = "a large red circle moving right over a black background"
TWO = ONE + ", and a small blue ring bouncing"


@pytest.mark.parametrize(
    ("prompt", "missing", "completed"),
    [
        (ONE, [], ONE),
        ("A LARGE red circle, moving right, over a black background!", [], ONE),
        (TWO, [], TWO),
        ("a large red circle", [], "a large red circle"),
        ("a red circle over a navy background", [], "a red circle over a navy background"),
        ("a red circle, and a blue ring bouncing", [], "a red circle, and a blue ring bouncing"),
        ("a small ring growing", ["colour"], "a small red ring growing"),
        ("a small blue one growing", ["shape"], "a small blue circle growing"),
        ("a cat", ["colour", "shape"], ONE),
        ("", ["colour", "shape"], ONE),
        (
            "a small cyan cross bouncing over a navy background, and a square",
            ["colour of the second"],
            "a small cyan cross bouncing over a navy background, and a red square",
        ),
        ("a small red circle right over a gray background", [], "a small red circle over a gray background"),
        ("a large red circle moving right over a black background and", [], ONE),
        ('"a large red circle" moving  right; over a (black) background!!!', [], ONE),
        (ONE + ", and a small red ring bouncing", ["another colour of the second"], TWO.replace("blue", "green")),
    ],
)
def test_what_is_missing_and_what_works(prompt: str, missing: list[str], completed: str):
    """A part that is there stays; the example stands in for the others, and the answer is whole itself."""
    assert PROMPT_FORM.missing(prompt) == missing
    assert PROMPT_FORM.completed(prompt) == completed
    assert PROMPT_FORM.is_whole(completed)


def test_every_sentence_of_the_world_is_whole_and_other_orders_are_not():
    """The form and the grammar that the model was trained on are one."""
    for prompt in prompts("train", 50) + prompts("train", 50, two_objects=True):
        assert PROMPT_FORM.is_whole(prompt) and not PROMPT_FORM.missing(prompt)
        assert parse_prompt(prompt).is_exact
    for prompt in partial_prompts(50):
        assert PROMPT_FORM.is_whole(prompt) and not PROMPT_FORM.missing(prompt)
    for other in ("over a black background a large red circle moving right", ONE + ONE, TWO + ", and " + ONE):
        assert not PROMPT_FORM.is_whole(other)


def test_a_form_without_brackets_needs_every_part():
    """As a model has it that knows whole sentences only; the example stands in for what is not there."""
    content = PROMPT_FORM.content()
    plain = {key: content[key].replace("[", "").replace("]", "") for key in ("sentence", "second")}
    form = PromptForm.read(content | plain, "here")
    second = ONE.replace("red", "cyan") + ", and a green square"
    assert form.missing("a large red circle") == ["motion", "background"] and form.completed("a red circle") == ONE
    assert form.missing(second) == ["size of the second", "motion of the second"]
    assert form.completed(second) == second.replace("green square", "large green square moving right").replace(
        "and a", "and a"
    )
    assert form.is_whole(TWO) and not form.is_whole("a large red circle")


def test_a_form_comes_back_from_json():
    """As model_index.json holds it."""
    assert PromptForm.read(json.loads(json.dumps(PROMPT_FORM.content())), "here") == PROMPT_FORM


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"example": 3}, "example is 3: it must be a text"),
        ({"parts": []}, r"parts is \[\]: it must be an object"),
        ({"parts": {"size": []}}, "'size' of the prompt form must be a list of lower-case words"),
        ({"parts": {"size": ["Large"]}}, "'size' of the prompt form must be a list of lower-case words"),
        ({"sentence": "a {hue}"}, "differ in background, hue"),
        ({"sentence": "a {size"}, "'a {size' is no sentence with parts in braces"),
        ({"sentence": "a {size} }"}, "is no sentence with parts in braces"),
        ({"sentence": "a {}"}, "must have nothing but names in its braces"),
        ({"sentence": "a {size:d}"}, "must have nothing but names in its braces"),
        ({"sentence": "a {size!r}"}, "must have nothing but names in its braces"),
        ({"sentence": "a [{size}"}, "must have one part in each pair of square brackets"),
        ({"sentence": "a {size}] [very] {colour}"}, "must have one part in each pair of square brackets"),
        ({"sentence": "a [{size} {colour}]"}, "must have one part in each pair of square brackets"),
        ({"sentence": "a [[{size}] {colour}]"}, "must have one part in each pair of square brackets"),
        ({"second": PROMPT_FORM.second.replace("and", "with")}, 'must hold the word "and"'),
        ({"example": "a circle"}, "example must be a sentence of the form"),
        ({"example": ""}, "example must be a sentence of the form"),
        ({"different": ["background"]}, "a list of parts of the second object"),
        ({"more": ""}, "unknown key 'more': it is none of sentence, second"),
        ({"parts": {"size": [7]}}, "0 is 7: it must be a text"),
        ({"different": "hue"}, "different is 'hue': it must be a list"),
    ],
)
def test_a_form_that_is_none_is_refused(change: dict, says: str):
    """Named, with its place."""
    with pytest.raises(EvditError, match=says) as caught:
        PromptForm.read(PROMPT_FORM.content() | change, "model_index.json evdit.prompt_form")
    assert caught.value.where.startswith("model_index.json evdit.prompt_form")
