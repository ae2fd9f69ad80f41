"""Which prompts a model is analysed with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sampling.fakes import GaussianBackbone
from vdit_cli.data.shapes_prompts import parse_prompt
from vdit_cli.errors import EvditError
from vdit_cli.sampling.default_prompts import COUNT, DEFAULTS, NATURAL, WORLD, choose_prompts


class Reader(GaussianBackbone):
    """A model that has tokens for certain words only, or for all."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.words = {word for text in texts for word in text.split()}

    def unknown_words(self, prompt: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Known and unknown ones."""
        words = prompt.split()
        known = tuple(word for word in words if not self.words or word in self.words)
        return known, tuple(word for word in words if word not in known)


def test_defaults_suit_what_a_model_can_read():
    """Natural ones where it knows all their words, else sentences of the shapes world."""
    assert choose_prompts(None, None, Reader()) == NATURAL[:COUNT]
    assert choose_prompts(None, 2, Reader(*WORLD)) == WORLD[:2]
    assert choose_prompts(None, 8, Reader("nothing")) == WORLD


def test_the_worlds_prompts_are_of_its_grammar_and_the_first_two_contrast():
    """Exact sentences; no attribute of the first object in common between the first two."""
    readings = [parse_prompt(prompt) for prompt in WORLD]
    assert all(reading.is_exact for reading in readings)
    first, second = (reading.objects[0] for reading in readings[:2])
    assert not {first.size, first.colour, first.shape, first.motion} & {
        second.size,
        second.colour,
        second.shape,
        second.motion,
    }
    assert all(len(set(each)) == len(each) == 8 for each in DEFAULTS)


def test_a_file_gives_all_or_the_first_ones(tmp_path: Path):
    """More than there are is refused, naming how many; so is none."""
    path = tmp_path / "prompts.txt"
    path.write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    assert choose_prompts(path, None, Reader()) == ("one", "two", "three")
    assert choose_prompts(path, 2, Reader()) == ("one", "two")
    for count, near in ((4, "3"), (0, "1")):
        with pytest.raises(EvditError, match="holds 3") as caught:
            choose_prompts(path, count, Reader())
        assert caught.value.next_steps[0] == f"--num-prompts {near}"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(EvditError, match="holds no prompt"):
        choose_prompts(path, None, Reader())
