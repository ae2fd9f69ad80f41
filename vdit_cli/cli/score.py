"""`evdit score`: what videos of the shapes world show, and how much of their prompts is right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.models import table
from vdit_cli.cli.options import Json, path_argument

if TYPE_CHECKING:
    from vdit_cli.evaluation.score import ClipScore, Score

EXAMPLE = """evdit score out.mp4
evdit score videos/ --json"""

COLUMNS = ("video", "size", "colour", "shape", "motion", "background", "objects", "IoU", "wrong")


def command(
    paths: Annotated[
        list[Path],
        path_argument("VIDEO|FOLDER...", "Video files, folders of PNGs, or folders of videos."),
    ],
    as_json: Json = False,
) -> None:
    """Read videos of the shapes world by image analysis and compare them with their prompts.

    A prompt comes from the receipt beside a video (out.json of out.mp4) or from its metadata. What is not clear is left
    open ("-"); a video that shows no scene of the world is unreadable. IoU is the overlap with the ideal asked shape.
    """
    from vdit_cli.evaluation.score import score

    with Console() as console:
        found = score(paths, progress=console)
        console.end_stage()
        if as_json:
            console.json("evdit.score/1", found.content())
        else:
            console.data("\n".join([*table([COLUMNS, *(as_row(clip) for clip in found.clips)]), *remarks(found)]))


def as_row(clip: ClipScore) -> tuple[str, ...]:
    """A clip as the table's cells: what its first object and background look like, and what of it is wrong."""
    reading, shown = clip.reading, clip.shown
    if shown is None:
        return (clip.name, "unreadable", *("-",) * 6, reading.unreadable or "")
    wrong = [check for check, right in clip.right.items() if not right and check != "all five"]
    return (
        clip.name,
        *(word or "-" for word in (shown.size, shown.colour, shown.shape, shown.motion, reading.background)),
        str(len(reading.objects)),
        f"{clip.fit.overlap:.3f}" if clip.fit else "-",
        ", ".join(wrong) if clip.right else "(no prompt)",
    )


def remarks(found: Score) -> list[str]:
    """The lines below the table: accuracy by check, and the means of the fits."""
    lines = []
    if found.counts:
        head = ("", *found.counts)
        shares = ("right", *(f"{right}/{of} = {right / of:.3f}" for right, of in found.counts.values()))
        lines += ["", *table([head, shares])]
    if found.unreadable:
        lines += ["", f"unreadable: {found.unreadable} of {len(found.clips)}"]
    means = found.measures
    if means["overlap"] is not None:
        residual = "-" if means["residual"] is None else f"{means['residual']:.2f} px"
        lines += ["", f"IoU {means['overlap']:.3f}, jitter {means['jitter']:.4f}, track residual {residual} (means)"]
    return lines
