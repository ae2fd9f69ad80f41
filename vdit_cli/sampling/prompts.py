"""Prompts as a person gives them: words on the command line or lines of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vdit_cli.errors import EvditError

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
    return tuple(prompt.strip() for prompt in prompts)


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a UTF-8 text file, one a line; empty lines are left out.

    Raises EvditError (exit 2) for a file that is missing, not UTF-8, or without a prompt.
    """
    where = f"--prompts-file {file}"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise EvditError(
            f"{file} is not UTF-8: line {line} holds the byte {error.object[error.start]:#04x}",
            where=where,
            next_steps=[f"iconv -f latin1 -t utf-8 {file} > prompts.txt"],
        ) from error
    except OSError as error:
        raise EvditError(f"the prompts file {file} can't be read: {error.strerror}", where=where) from error
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not prompts:
        raise EvditError(f"{file} holds no prompt: it needs one a line", where=where, next_steps=[EXAMPLE])
    return prompts
