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
from vdit_cli.reader import shaped

TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|,")
OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
"""A stretch of a sentence in square brackets, which goes with its part where a prompt leaves that out."""


@dataclass(frozen=True)
class PromptForm:
    """A sentence with its parts in braces, what a second object adds to it, and what each part may be.

    What stands in square brackets may be left out, as in "a [{size} ]{colour} circle". `example` is a sentence of the
    form; its parts stand in for those that a prompt needs and lacks. In `different` stand the parts that a second
    object must not share with the first.
    """

    sentence: str
    second: str
    parts: Mapping[str, tuple[str, ...]]
    example: str
    different: tuple[str, ...] = ()

    @classmethod
    def read(cls, content: Any, where: str) -> PromptForm:
        """The form of a JSON object. Raises EvditError for other keys or types, and for sentences that do not fit."""
        form = shaped(cls, content, where, "prompt form")
        for name, words in form.parts.items():
            if not words or not all(map(_is_lower_case, words)):
                raise EvditError(
                    f"the part {name!r} of the prompt form must be a list of lower-case words", where=where
                )
        named = {name for key in ("sentence", "second") for name in _checked_names(content[key], f"{where}.{key}")}
        if named != form.parts.keys():
            wrong = ", ".join(sorted(named ^ form.parts.keys()))
            raise EvditError(f"the prompt form's sentences and its parts differ in {wrong}", where=where)
        if not all(name in names(form.second) for name in form.different):
            raise EvditError("what must be different must be a list of parts of the second object", where=where)
        if form.second and "and" not in tokens(form.second):
            raise EvditError('what a second object adds must hold the word "and"', where=f"{where}.second")
        if form.missing(form.example) or not form.is_whole(form.example):
            raise EvditError("the prompt form's example must be a sentence of the form", where=f"{where}.example")
        return form

    def content(self) -> dict[str, Any]:
        """The form as JSON values, as `read` takes it."""
        parts = {name: list(words) for name, words in self.parts.items()}
        sentences = {"sentence": self.sentence, "second": self.second, "example": self.example}
        return {**sentences, "parts": parts, "different": list(self.different)}

    def spelled(self, first: Mapping[str, str], *others: Mapping[str, str]) -> str:
        """The sentence of an object's parts, and what each other object adds; optional parts may be left out.

        Raises KeyError for a part that it needs and that is not there.
        """
        return _spelled(self.sentence, first) + "".join(_spelled(self.second, other) for other in others)

    def missing(self, prompt: str) -> list[str]:
        """The parts that a prompt needs and lacks, in words; those of a second object are named as such."""
        first, *others = self._read(prompt)
        lacks = [name for name in needed(self.sentence) if name not in first]
        for second in others[:1]:
            lacks += [f"{name} of the second" for name in needed(self.second) if name not in second]
            lacks += [
                f"another {name} of the second" for name in self.different if self._is_shared(name, first, second)
            ]
        return lacks

    def completed(self, prompt: str) -> str:
        """The sentence nearest to a prompt: its own parts, those of the example where it lacks one that it needs.

        Of a prompt without any part it is the example.
        """
        example = self._read(self.example)[0]
        first, *others = self._read(prompt)
        if not first and not others:
            return self.spelled(example)
        first = {name: example[name] for name in needed(self.sentence)} | first
        seconds = []
        for second in others[:1]:
            parts = {name: example[name] for name in needed(self.second)} | second
            for name in self.different:
                unlike = [each for each in self.parts[name] if each != first.get(name, example[name])]
                parts[name] = unlike[0] if parts.get(name) not in unlike and unlike else parts[name]
            seconds.append(parts)
        return self.spelled(first, *seconds)

    def is_whole(self, prompt: str) -> bool:
        """Whether a prompt is a sentence of this form, whatever its capitals and marks."""
        return tokens(prompt) == tokens(self.completed(prompt))

    @staticmethod
    def _is_shared(name: str, first: Mapping[str, str], second: Mapping[str, str]) -> bool:
        return name in second and second[name] == first.get(name)

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


def needed(sentence: str) -> list[str]:
    """The parts that a sentence can't leave out, in order."""
    return names(OPTIONAL.sub("", sentence))


def _spelled(sentence: str, parts: Mapping[str, str]) -> str:
    kept = OPTIONAL.sub(lambda found: found[1] if all(name in parts for name in names(found[1])) else "", sentence)
    return kept.format(**parts)


def _checked_names(sentence: str, where: str) -> list[str]:
    """The parts that a sentence names. Raises EvditError for other things in braces, or in square brackets."""
    try:
        found = [(name, how, turned) for _, name, how, turned in Formatter().parse(sentence) if name is not None]
    except ValueError as error:
        raise EvditError(f"{sentence!r} is no sentence with parts in braces: {error}", where=where) from error
    for name, how, turned in found:
        if not name.isidentifier() or how or turned:
            raise EvditError(f"{sentence!r} must have nothing but names in its braces", where=where)
    stretches = OPTIONAL.findall(sentence)
    if any(sign in OPTIONAL.sub("", sentence) for sign in "[]") or any(len(names(each)) != 1 for each in stretches):
        raise EvditError(f"{sentence!r} must have one part in each pair of square brackets", where=where)
    return [name for name, _, _ in found]


def _is_lower_case(words: str) -> bool:
    return words != "" and " ".join(tokens(words)) == words


def tokens(prompt: str) -> list[str]:
    """The lower-case words and commas of a prompt, other marks left out."""
    return TOKEN.findall(prompt.lower())
