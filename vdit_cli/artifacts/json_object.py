"""A file of one JSON object: its text read and parsed strictly, and its keys checked. Refusals name file and place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from vdit_cli.errors import EvditError, nearest


def read_text(file: Path, kind: str) -> str:
    """The text of `file`, which is to hold a `kind` ("plan"). Raises EvditError where it can't be read or is empty."""
    try:
        if file.exists() and not file.is_file() and not file.is_dir():  # a device may have no end
            raise EvditError(f"{file} is no {kind}: it is no regular file", where=str(file))
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvditError(f"{file.name} is no {kind}: it is not UTF-8 text", where=str(file)) from error
    except OSError as error:
        raise EvditError(f"{file} can't be read: {error.strerror or error}", where=str(file)) from error
    if not text.strip():
        raise EvditError(f"{file.name} is empty: a {kind} is a JSON object", where=str(file))
    return text


def parse(text: str, origin: str, kind: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises EvditError for other text, NaN or infinite numbers, and keys named twice."""

    def refuse_number(literal: str) -> NoReturn:
        raise ValueError(f"{literal} is no JSON number")

    def finite(literal: str) -> float:
        number = float(literal)
        if not math.isfinite(number):
            refuse_number(literal)
        return number

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content: dict[str, Any] = {}
        for key, value in pairs:
            if key in content:
                raise ValueError(f"the key {key!r} stands twice")
            content[key] = value
        return content

    try:
        document = json.loads(text, parse_constant=refuse_number, parse_float=finite, object_pairs_hook=once)
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # a lone surrogate can be escaped, but not written
    except (ValueError, RecursionError) as error:
        raise EvditError(f"not a {kind}: it is not JSON ({error})", where=origin) from error
    if not isinstance(document, dict):
        raise EvditError(f"not a {kind}: it is a JSON {type(document).__name__}, a {kind} is an object", where=origin)
    return document


def check_keys(
    value: dict[str, Any], needed: tuple[str, ...], optional: tuple[str, ...], origin: str, kind: str = "plan"
) -> None:
    """Raises EvditError for a key that is missing, or unknown (with the nearest name)."""
    known = (*needed, *optional)
    for key in value:
        if key not in known:
            raise EvditError(
                f"unknown key {key!r}: it is none of {', '.join(known)}",
                where=origin,
                next_steps=nearest(key, known, 1),
            )
    for key in needed:
        if key not in value:
            raise EvditError(f"{key} is missing: a {kind} needs it", where=origin)


def brief(value: Any) -> str:
    """A JSON value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
