"""The README.md of a run: run.json for a person who finds the folder a year later."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.atomic import write_text
from vdit_cli.artifacts.changes import FINISHED, changes_of

MARK = "<!-- written by evdit from run.json -->"
CARD = "README.md"


def write_card(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the card of a run into its folder; a README.md that evdit did not write is left alone."""
    path = folder / CARD
    if not os.path.lexists(path) or is_own_card(path):
        write_text(path, card(manifest))


def is_own_card(path: Path) -> bool:
    """Whether a README.md is one that evdit wrote; no more of it is read, and one that can't be is somebody's."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MARK)) == MARK.encode("ascii")
    except OSError:
        return False


def card(manifest: Mapping[str, Any]) -> str:
    """What made the folder, when and how it ended, what came in and out, and every value with where it was set."""
    version, machine = manifest["versions"]["evdit"], manifest["machine"]
    ended = f", ended {manifest['ended']}" if "ended" in manifest else ""
    lines = [
        MARK,
        f"# {manifest['command']}, {manifest['model']}",
        "",
        f"Made by `evdit {manifest['command']}` (evdit {version}) on {machine['system']}, {machine['processor']}.",
        f"Started {manifest.get('started', 'at an unknown time')}{ended}: **{manifest['state']}**."
        + (f" {manifest['failure']}" if "failure" in manifest else ""),
        "",
    ]
    if FINISHED in manifest:
        lines += ["What came out is of the run as it was finished before it was made longer, until that is done.", ""]
    changes = [f"- {each}" for each in changes_of(manifest)]
    if changes:
        lines += ["## Values that were changed on the way", "", *changes, ""]
    inputs = [[role, each["name"], each["sha256"][:12]] for role, each in manifest["inputs"].items()]
    outputs = [
        [role, f"[{each['path']}](<{each['path']}>)", each["sha256"][:12]] for role, each in manifest["outputs"].items()
    ]
    values = [
        [f"`{key}`", f"`{plain(value)}`", manifest["origins"].get(key, "")] for key, value in manifest["values"].items()
    ]
    for title, heads, rows in (
        ("What came in", ["role", "name", "sha256"], inputs),
        ("What came out", ["role", "where", "sha256"], outputs),
        ("Values", ["key", "value", "set by"], values),
    ):
        if rows:
            lines += [f"## {title}", "", *table(heads, rows), ""]
    return "\n".join(lines)


def plain(value: Any) -> str:
    """A value as JSON, a long one cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table; bars and new lines inside a cell are kept from ending it."""
    cells = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells]
