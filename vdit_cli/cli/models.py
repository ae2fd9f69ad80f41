"""`evdit models`: the registered backbones, and whether their weights are here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vdit_cli.backbones.registry import all_entries
from vdit_cli.backbones.sources import BackboneEntry, size_text
from vdit_cli.cli.console import Console

EXAMPLE = """evdit models
evdit models --json"""

COLUMNS = ("name", "parameters", "frames x size", "tokens", "licence", "weights", "folder")


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """List the models that --model takes by name: size, frames, tokens, and whether their weights are here.

    --model also takes a folder (a pipeline folder, or Open-Sora-Plan's published folders) and an owner/name of a hub.
    """
    entries = all_entries()
    console = Console()
    if as_json:
        console.json("evdit.models/1", {"models": [as_content(entry) for entry in entries]})
    else:
        console.data("\n".join(table([COLUMNS, *(as_row(entry) for entry in entries)])))


def as_row(entry: BackboneEntry) -> tuple[str, ...]:
    """The entry as the table's cells."""
    missing = entry.missing_files()
    return (
        entry.name,
        count_text(entry.parameters),
        f"{entry.video_frames} x {entry.height} x {entry.width}",
        f"{entry.tokens:,}",
        entry.licence,
        f"missing {size_text(sum(file.bytes for file in missing))}" if missing else "here",
        str(entry.weights_folder),
    )


def as_content(entry: BackboneEntry) -> dict[str, Any]:
    """The entry as JSON values; sizes in bytes, height and width in pixels."""
    missing = entry.missing_files()
    return {
        "name": entry.name,
        "parameters": entry.parameters,
        "video_frames": entry.video_frames,
        "height": entry.height,
        "width": entry.width,
        "tokens": entry.tokens,
        "licence": entry.licence,
        "weights_here": not missing,
        "folder": str(entry.weights_folder),
        "files": [{"path": file.path, "bytes": file.bytes, "here": file not in missing} for file in entry.files],
        "hub_id": entry.hub_id,
        "text_encoder_id": entry.text_encoder_id,
    }


def count_text(count: int) -> str:
    """A number of parameters as "2.8 B" or "11.9 M"."""
    return f"{count / 1e9:.1f} B" if count >= 10**9 else f"{count / 1e6:.1f} M"


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """The rows as lines of columns, each as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
