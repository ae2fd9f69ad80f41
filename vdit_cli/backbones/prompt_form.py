"""The sentences that a model was trained on, for a model that knows whole sentences of one form only. No torch.

It travels in model_index.json as `evdit.prompt_form`, so that every model trained from one carries it on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from vdit_cli.errors import EvditError

TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|,")


@dataclass(frozen=True)
class PromptForm:
    """A sentence with its parts in braces, what a second object adds to it, and what each part may be.

    `example` is a whole sentence; its parts stand in for those that a prompt leaves out.
    """

    sentence: str
    second: str
    parts: Mapping[str, tuple[str, ...]]
    example: str

    @classmethod
    def read(cls, content: Any, where: str) -> PromptForm:
        """The form of a JSON object. Raises EvditError for other keys or types, and for parts that nothing names."""
        texts = ("sentence", "second", "example")
        if not isinstance(content, dict) or content.keys() != {*texts, "parts"}:
            raise EvditError(f"a prompt form must have the keys {', '.join(texts)} and parts", where=where)
        parts = content["parts"]
        if not all(isinstance(content[key], str) for key in texts) or not isinstance(parts, dict):
            raise EvditError("a prompt form's sentences must be text, and its parts an object", where=where)
        for name, words in parts.items():
            if not (isinstance(words, list) and words and all(isinstance(each, str) and each for each in words)):
                raise EvditError(f"the part {name!r} of the prompt form must be a list of words", where=where)
        named = {name for key in ("sentence", "second") for _, name, _, _ in Formatter().parse(content[key]) if name}
        if named != parts.keys():
            wrong = ", ".join(sorted(named ^ parts.keys()))
            raise EvditError(f"the prompt form's sentences and its parts differ in {wrong}", where=where)
        return cls(parts={name: tuple(words) for name, words in parts.items()}, **{key: content[key] for key in texts})

    def content(self) -> dict[str, Any]:
        """The form as JSON values, as `read` takes it."""
        parts = {name: list(words) for name, words in self.parts.items()}
        return {"sentence": self.sentence, "second": self.second, "parts": parts, "example": self.example}

    def missing(self, prompt: str) -> list[str]:
        """The parts that a prompt leaves out, in words; those of a second object are named as such."""
        first, *others = self._read(prompt)
        lacks = [name for name in names(self.sentence) if name not in first]
        return lacks + [f"{name} of the second" for name in names(self.second) if others and name not in others[0]]

    def completed(self, prompt: str) -> str:
        """The sentence nearest to a prompt: its own parts where it has them, else those of the example."""
        example = self._read(self.example)[0]
        first, *others = self._read(prompt)
        sentence = self.sentence.format(**{**example, **first})
        return sentence + "".join(self.second.format(**{**example, **other}) for other in others[:1])

    def is_whole(self, prompt: str) -> bool:
        """Whether a prompt is a sentence of this form, whatever its capitals and marks."""
        return tokens(prompt) == tokens(self.completed(prompt))

    def _read(self, prompt: str) -> list[dict[str, str]]:
        """The parts by name of each object: an object ends at "and"; what no second object has may stand anywhere."""
        found = tokens(prompt)
        ends = [place for place, token in enumerate(found) if token == "and"]
        pieces = [found[start:end] for start, end in zip([0, *(end + 1 for end in ends)], [*ends, None], strict=True)]
        objects = [self._parts_in(piece, names(self.second)) for piece in pieces]
        shared = [name for name in names(self.sentence) if name not in names(self.second)]
        objects = [objects[0], *(each for each in objects[1:] if each)]
        return [objects[0] | self._parts_in(found, shared), *objects[1:]]

    def _parts_in(self, found: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
        """Of the wanted parts those that are there, each by the words that come first."""
        spaced = f" {' '.join(found)} "
        places = {name: {each: spaced.find(f" {each} ") for each in self.parts[name]} for name in wanted}
        there = {name: {each: at for each, at in words.items() if at >= 0} for name, words in places.items()}
        return {name: min(words, key=lambda each: words[each]) for name, words in there.items() if words}


def names(sentence: str) -> list[str]:
    """The parts that a sentence names in braces, in order."""
    return [name for _, name, _, _ in Formatter().parse(sentence) if name]


def tokens(prompt: str) -> list[str]:
    """The lower-case words and commas of a prompt, other marks left out."""
    return TOKEN.findall(prompt.lower())
