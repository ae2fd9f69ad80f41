"""`evdit compare`: the videos of runs side by side, those that differ most first."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from vdit_cli.cli.console import Console
from vdit_cli.cli.masks import picture_place
from vdit_cli.cli.models import table
from vdit_cli.cli.options import Json, Overwrite, path_argument, path_option
from vdit_cli.reader import MOST

if TYPE_CHECKING:
    from vdit_cli.evaluation.compare import Compared

EXAMPLE = """evdit compare runs/base runs/student -o side-by-side.mp4 --sheet side-by-side.png
evdit compare runs/base runs/4-4 runs/1-7 --label dense --label 4:4 --label 1:7 -o masks.mp4"""

PROMPT = 60
"""So many signs of a prompt stand in the table."""


def command(
    runs: Annotated[
        list[Path], path_argument("RUN...", "Two folders of videos or more; the first is the one held to.")
    ],
    output: Annotated[
        Path,
        path_option("-o", "--output", help="The video: a .mp4, .gif or .webp, or without a suffix a folder of PNGs."),
    ],
    sheet: Annotated[
        Path | None, path_option("--sheet", help="Also draw some frames of each video on this .png.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", help="What a run is called; one for each, in order. [default: folders' names]"),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", min=1, max=MOST, help="Pairs that are shown; half of them of large motion.", metavar="N"
        ),
    ] = 8,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show videos of the same prompt and seed side by side, a column a run, where the runs differ most.

    A pair's difference is the mean absolute one to the first run's video, of pixels in [0, 1], the largest over runs.
    The quarter of pairs whose first video moves most (mean absolute difference of neighbouring frames) is large motion:
    a class of its own, which has half of the places. One pair is shown after another.
    """
    from vdit_cli.evaluation.compare import compare

    place = picture_place(sheet, overwrite, "--sheet")
    with Console() as console:
        found = compare(runs, output, console, sheet=place, labels=labels or (), limit=limit, overwrite=overwrite)
        console.end_stage()
        files = {"output": str(output), "sheet": None if place is None else str(place)}
        if as_json:
            console.json("evdit.compare/1", {**found.content(), **files})
        else:
            wrote = [f"wrote {file}" for file in files.values() if file]
            console.data("\n".join([*table(rows(found)), "", *summary(found), *wrote]))


def rows(found: Compared) -> list[tuple[str, ...]]:
    """The pairs that are shown, in their order: the difference of each later run to the first, motion, prompt."""
    head = ("", *found.labels[1:], "motion", "class", "seed", "prompt")
    return [
        head,
        *(
            (
                str(number),
                *(f"{each:.4f}" for each in pair.differences),
                f"{pair.motion:.4f}",
                "large motion" if pair.is_large else "-",
                "-" if pair.videos[0].seed is None else str(pair.videos[0].seed),
                shorten(pair.name, PROMPT, placeholder=" ..."),
            )
            for number, pair in enumerate(found.shown, start=1)
        ),
    ]


def summary(found: Compared) -> list[str]:
    """How many pairs there are and are left out, and what large motion is here."""
    count, shown = len(found.pairs), len(found.shown)
    left = f", {count - shown} left out (--limit {count} shows all)" if count > shown else ""
    large = sum(pair.is_large for pair in found.pairs)
    told = f"{large} of {count} pairs, the quarter that moves most in {found.labels[0]}"
    least = "none" if found.large_from is None else f"{told}, by {found.large_from:.4f} at least"
    return [
        f"differences to {found.labels[0]}, and motion there: of pixels in [0, 1]",
        f"pairs: {count}, {shown} shown{left}",
        f"large motion: {least}",
    ]
