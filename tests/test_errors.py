"""What errors say: words of others cut, values as JSON has them, settings that any shell takes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from vdit_cli.errors import MOST_TOLD, EvditError, brief, either, one_line, setting


@pytest.mark.parametrize("place", ["what", "where"])
def test_words_of_others_are_cut(place: str):
    """A key of 20,000 letters, and as many with spaces between; what stands around them is told."""
    for foreign in ("x" * 20_000, "x " * 10_000):
        told = {"what": "it is wrong", place: f"unknown key '{foreign}': no stage has it"}
        text = EvditError(**told).text()
        assert len(text) < MOST_TOLD + 100 and "unknown key 'x" in text and "no stage has it" in text
    assert len(EvditError(f"unknown key '{'x' * 20_000}'").text()) < 100


def test_paths_and_next_steps_stay_whole():
    """A path has longer words than any name in it, and a step is there to be pasted."""
    path = Path("/", *["n" * 255] * 4)
    error = EvditError(f"{path} can't be read", where=str(path), next_steps=["y" * 5000])
    assert error.text().count(str(path)) == 2 and "y" * 5000 in error.text()


def test_values_are_told_as_json_has_them():
    """Not in the words of Python."""
    assert [brief(each) for each in (None, True, False, 1, "1", [2.5])] == [
        "null",
        "true",
        "false",
        "1",
        "'1'",
        "[2.5]",
    ]
    assert [either(each) for each in ((), ("a",), ("a", "b"), ("a", "b", "c"))] == ["", "a", "a or b", "a, b or c"]


def test_a_name_stays_in_its_line():
    """Ends of lines and what steers a terminal are written out."""
    assert one_line("a\nb\tc\x1b[31m") == "a\\nb\\tc\\u001b[31m"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([2, 5], '--set "a.b=[2,5]"'),
        ((0.5,), '--set "a.b=[0.5]"'),
        (True, "--set a.b=true"),
        (8, "--set a.b=8"),
        ("ddim", "--set a.b=ddim"),
        ("['']", "--set \"a.b=['']\""),
        ("$HOME", "--set 'a.b=$HOME'"),
    ],
)
def test_a_setting_is_quoted_where_a_shell_would_take_it_for_a_pattern(value: object, words: str):
    """zsh looks for files called x=2, x=, and x=5 where brackets are bare."""
    assert setting("a.b", value) == words
    if isinstance(value, str):
        assert shlex.split(words) == ["--set", f"a.b={value}"]
