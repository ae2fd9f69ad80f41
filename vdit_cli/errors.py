"""The one exception a person sees: what is wrong, where, the next step, and the exit code of the process."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

DONE = 0
FAILED = 1
USAGE = 2
ENVIRONMENT = 3
OUT_OF_MEMORY = 4
GATE_FAILED = 5
FALLBACK = 6
INTERRUPTED = 130


STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control signs of ASCII and Latin-1 but for line feed and tab, other line ends, and those that turn the direction."""

LONG_WORD = re.compile(r"""[^\s'"/]{256,}""")
"""Longer than any name that a file can have, so that paths stay whole."""
MOST_TOLD = 2000
"""Signs of a line that tells what is wrong, or where."""
MOST_LISTED = 8
"""Of several things that are wrong in one way."""


class EvditError(Exception):
    """An error that a person caused or can mend, printed without a stack trace by `cli/app.py`.

    `what` names the thing, its value and the rule ("31 frames do not fit open-sora-plan: video frames must be 4k+1").
    `where` is the origin: a flag, `recipes/x.yaml:14 search_masks.r`, or `plan.json layer 7`. `next_steps` are lines
    to paste or to do, joined by "or". `exit_code` is one of this module's constants.
    """

    def __init__(
        self, what: str, *, where: str | None = None, next_steps: Iterable[str] = (), exit_code: int = USAGE
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.next_steps = tuple(next_steps)
        self.exit_code = exit_code

    def text(self) -> str:
        """The printed form: an `error:` line, then `from:` and `try:` lines where they are known."""
        lines = [f"error: {cut(self.what)}"]
        if self.where:
            lines.append(f"  from:  {cut(self.where)}")
        if self.next_steps:
            lines.append("  try:   " + "  or  ".join(self.next_steps))
        return printable("\n".join(lines))


class Interrupted(EvditError):
    """A person pressed Ctrl-C once: what was under way was left in a state that the same command goes on from."""

    def __init__(self, what: str, *, next_steps: Iterable[str] = ()) -> None:
        super().__init__(what, next_steps=next_steps, exit_code=INTERRUPTED)


def together(errors: Sequence[EvditError], what: str) -> EvditError:
    """One error for several of a kind, told as `what` and the first MOST_LISTED of them; a single one is itself."""
    first = errors[:MOST_LISTED]
    if len(errors) == 1:
        return first[0]
    told = [
        each.what if each.where is None or each.where in each.what else f"{each.where}: {each.what}" for each in first
    ]
    more = [f"and {len(errors) - len(first)} more"] if len(errors) > len(first) else []
    steps = dict.fromkeys(step for each in first for step in each.next_steps)
    return EvditError(f"{what}: {'; '.join(told + more)}", next_steps=steps, exit_code=first[0].exit_code)


def printable(text: str) -> str:
    """Text for a terminal: what would steer it (colours, cursor, title) is written as its number, as JSON has it.

    Lines and tabs stay. Names, prompts and files of others may hold anything.
    """
    return STEERING.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def one_line(text: str) -> str:
    """Text of others inside a line: as `printable`, its ends of lines and tabs too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def quoted(word: str | Path) -> str:
    """A word to paste into a shell: as it is, in double quotes where it has spaces, or quoted sign by sign."""
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    is_plain = re.fullmatch(r"[\w%+,./:;()?\[\]\-@=' ]+", text) is not None
    return f'"{text}"' if is_plain and text != shlex.quote(text) else shlex.quote(text)


def setting(key: str, value: Any) -> str:
    """The words that set a knob, to paste: quoted where a list's brackets are, which some shells take for a pattern."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str)
    return f"--set {quoted(f'{key}={text}')}"


def cut(text: str) -> str:
    """Text of ours with that of others in it: the longest words cut as `brief` does, and the middle left out."""
    text = LONG_WORD.sub(lambda word: brief(word[0], str), text)
    return text if len(text) <= MOST_TOLD else f"{text[: MOST_TOLD // 2]} ... {text[-MOST_TOLD // 2 :]}"


def as_json_has_it(value: Any) -> str:
    """A value as Python writes it, but for null, true and false."""
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def brief(value: Any, said: Callable[[Any], str] = as_json_has_it) -> str:
    """A value in at most 60 characters."""
    text = said(value)
    return text if len(text) <= 60 else text[:57] + "..."


def either(words: Iterable[str]) -> str:
    """What may be, in words: "a, b or c"."""
    *others, last = ["", *words]
    return " or ".join(filter(None, [", ".join(others[1:]), last]))


def nearest(name: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` entries of `names` most like `name`, best first."""
    return sorted(names, key=lambda known: -SequenceMatcher(None, name.lower(), known.lower()).ratio())[:count]


def unknown_name(
    kind: str, name: str, names: Iterable[str], where: str | None = None, flag: str | None = None
) -> EvditError:
    """The error for a `kind` called `name` that is in no table, with the three nearest names as the next step.

    Where a person may type them behind a `flag`, the next step says so.
    """
    known = list(names)
    told = f"the only one is {known[0]}" if len(known) == 1 else f"it is none of {', '.join(sorted(known))}"
    steps = [f"{flag} {each}" if flag else each for each in nearest(name, known)]
    return EvditError(f"unknown {kind} {name!r}: {told}", where=where, next_steps=steps)
