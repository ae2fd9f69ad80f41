"""The sentences that a model knows: what a prompt lacks, and the nearest sentence that works."""

from __future__ import annotations

import json

import pytest

from vdit_cli.backbones.prompt_form import PromptForm
from vdit_cli.data.shapes_prompts import PROMPT_FORM, parse_prompt, prompts
from vdit_cli.errors import EvditError

ONE = "a large red circle moving right over a black background"
TWO = ONE + ", and a small blue ring bouncing"


@pytest.mark.parametrize(
    ("prompt", "missing", "completed"),
    [
        (ONE, [], ONE),
        ("A LARGE red circle, moving right, over a black background!", [], ONE),
        (TWO, [], TWO),
        ("a large red circle", ["motion", "background"], ONE),
        ("a small blue ring growing", ["background"], "a small blue ring growing over a black background"),
        ("a cat", ["size", "colour", "shape", "motion", "background"], ONE),
        ("", ["size", "colour", "shape", "motion", "background"], ONE),
        (
            "a small cyan cross bouncing over a navy background, and a green square",
            ["size of the second", "motion of the second"],
            "a small cyan cross bouncing over a navy background, and a large green square moving right",
        ),
        (
            "a small red circle right over a gray background",
            ["motion"],
            ONE.replace("large", "small").replace("black", "gray"),
        ),
        ("a large red circle moving right over a black background and", [], ONE),
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
    for other in ("over a black background a large red circle moving right", ONE + ONE, TWO + ", and " + ONE):
        assert not PROMPT_FORM.is_whole(other)


def test_a_form_comes_back_from_json():
    """As model_index.json holds it."""
    assert PromptForm.read(json.loads(json.dumps(PROMPT_FORM.content())), "here") == PROMPT_FORM


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"example": 3}, "must be text"),
        ({"parts": []}, "its parts an object"),
        ({"parts": {"size": []}}, "'size' of the prompt form must be a list of words"),
        ({"sentence": "a {hue}"}, "differ in background, hue"),
        ({"more": ""}, "must have the keys"),
    ],
)
def test_a_form_that_is_none_is_refused(change: dict, says: str):
    """Named, with its place."""
    with pytest.raises(EvditError, match=says) as caught:
        PromptForm.read(PROMPT_FORM.content() | change, "model_index.json evdit.prompt_form")
    assert caught.value.where == "model_index.json evdit.prompt_form"
