"""Prompts as a person gives them: words on the command line or lines of a file."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from vdit_cli.errors import EvditError, quoted
from vdit_cli.reader import MOST_TEXT, read_bytes

LINE_END = re.compile(r"\r\n|\r|\n")
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
"""What a text begins with by its encoding; that of UTF-32 begins with that of UTF-16."""
WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
EXAMPLE = "a large red circle moving right over a black background"


def collect_prompts(prompts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line, or those of `file`, without the space around them.

    Raises EvditError (exit 2) for none, for both, for an empty one, and for a file that can't be read.
    """
    if prompts and file is not None:
        raise EvditError("prompts were given both as words and as a file: give one", where=f"--prompts-file {file}")
    if file is not None:
        return read_prompts(file)
    if not prompts:
        raise EvditError("no prompt was given", next_steps=[f'evdit generate "{EXAMPLE}"', "--prompts-file FILE"])
    for number, prompt in enumerate(prompts, 1):
        if not prompt.strip():
            raise EvditError("the prompt is empty", where=f"prompt {number}", next_steps=[f'"{EXAMPLE}"'])
        check_prompt(prompt, "the prompt", f"prompt {number}")
    return tuple(prompt.strip() for prompt in prompts)


def check_prompt(prompt: str, name: str, where: str) -> None:
    """Raise EvditError (exit 2) for a prompt that is longer than any model reads, or that UTF-8 can't write.

    `name` is what the error calls it: where it was set may be the line of a recipe that names its file.
    """
    if len(prompt) > MOST_TEXT:
        raise EvditError(f"{name} has {len(prompt)} signs, and {MOST_TEXT} is the most", where=where)
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EvditError(f"{name} is no text: {error.reason} at sign {error.start + 1}", where=where) from error


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a UTF-8 text file, one a line; empty lines are left out.

    A line ends at a line feed, a carriage return or both: other breaks, as word processors make, are part of a prompt.
    Raises EvditError (exit 2) for a file that is missing, not UTF-8, or without a prompt.
    """
    where = f"--prompts-file {file}"
    content = read_bytes(file, "prompts file", where)
    encoding = wide_encoding(content)
    if encoding is not None:
        raise EvditError(f"{file} is {encoding} text, not UTF-8", where=where, next_steps=[_converting(file, encoding)])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(file, content, error.start, where) from error
    if "\0" in text:
        raise _not_utf8(file, content, content.index(0), where)
    lines = [(number, line.strip()) for number, line in enumerate(LINE_END.split(text), 1) if line.strip()]
    for number, line in lines:
        check_prompt(line, f"line {number} of {file}", f"{where} line {number}")
    prompts = tuple(line for _, line in lines)
    if not prompts:
        raise EvditError(f"{file} holds no prompt: it needs one a line", where=where, next_steps=[EXAMPLE])
    return prompts


def wide_encoding(content: bytes) -> str | None:
    """The encoding of a text in units of two or four bytes, by its mark or its zero bytes; None where that is not sure.

    Without a mark it is sure where most signs are ASCII in one of the four and not in the others.
    """
    for mark, name in MARKS:
        if content.startswith(mark):
            return name
    fitting = [name for name in WIDE if b"\0" in content and _is_mostly_ascii(content, name)]
    return fitting[0] if len(fitting) == 1 else None


def _is_mostly_ascii(content: bytes, encoding: str) -> bool:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return "\0" not in text and sum(sign.isascii() for sign in text) * 2 > len(text)


def _not_utf8(file: Path, content: bytes, place: int, where: str) -> EvditError:
    line = len(LINE_END.split(content[:place].decode("latin-1")))
    return EvditError(
        f"{file} is not UTF-8: line {line} holds the byte {content[place]:#04x}",
        where=where,
        next_steps=["save it as UTF-8 in the program that wrote it", _converting(file, "ITS-ENCODING")],
    )


def _converting(file: Path, encoding: str) -> str:
    """A command that writes a UTF-8 copy of `file` under a name that is not there yet."""
    names = (file.with_name(f"{file.stem}-utf8{number}{file.suffix}") for number in chain([""], count(2)))
    copy = next(name for name in names if not name.exists())
    return f"iconv -f {encoding} -t UTF-8 {quoted(file)} > {quoted(copy)}"
