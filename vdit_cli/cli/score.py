"""`evdit score`: what videos of the shapes world show, how much of their prompts is right, and against other videos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from vdit_cli.cli.console import Console
from vdit_cli.cli.models import table
from vdit_cli.cli.options import Json, path_argument, path_option
from vdit_cli.reader import MOST_LAYERS

if TYPE_CHECKING:
    from vdit_cli.evaluation.comparison import Comparison
    from vdit_cli.evaluation.intervals import Estimate
    from vdit_cli.evaluation.score import ClipScore, Score

EXAMPLE = """evdit score out.mp4
evdit score videos/ --json
evdit score runs/student --against runs/base -o readings.jsonl"""

COLUMNS = ("video", "size", "colour", "shape", "motion", "background", "objects", "IoU", "wrong")
EACH = 20
"""So many videos are told one by one; of more, only what they come to."""
SIDES = 5
"""Columns of a comparison that are about the sides: the name, and of each its mean and interval."""
TOLD = {"overlap": "IoU", "residual": "track residual, px"}
"""What a measure is called in the table, where that is not its name."""

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        max=MOST_LAYERS,
        help="Processes that read. [default: one a core, for 8 videos at least]",
        show_default=False,
        metavar="N",
    ),
]
World = Annotated[
    bool | None,
    typer.Option(
        "--world/--no-world",
        help="Render the prompts' world for the Frechet distance. [default: for more than 20 videos]",
        show_default=False,
    ),
]


def command(
    paths: Annotated[
        list[Path], path_argument("VIDEO|FOLDER...", "Video files, folders of PNGs, or folders of videos.")
    ],
    against: Annotated[
        Path | None,
        path_option("--against", help="Other videos: tell what differs between those of one prompt and seed."),
    ] = None,
    output: Annotated[
        Path | None,
        path_option("-o", "--output", help="A file that keeps what is read: the same command goes on from there."),
    ] = None,
    workers: Workers = None,
    world: World = None,
    each: Annotated[bool, typer.Option("--each", help="A line a video, also for more than 20.")] = False,
    as_json: Json = False,
) -> None:
    """Read videos of the shapes world by image analysis and compare them with their prompts.

    A prompt comes from the receipt beside a video (out.json of out.mp4) or from its metadata. What is not clear is left
    open ("-"); a video that shows no scene of the world is unreadable. IoU is the overlap with the ideal asked shape.

    Below stand means with 95 % intervals (10,000 resamples of prompts, a prompt's videos together); a * marks
    differences of 8 prompts or more whose interval holds no 0. docs/scoring.md says what each number is.
    """
    from vdit_cli.evaluation.comparison import compare
    from vdit_cli.evaluation.score import score

    with Console() as console:
        if against is None:
            found = score(paths, progress=console, kept=output, workers=workers, world=world)
            content, sides, rows = found.content(), {"video": found}, summary(found)
        else:
            both = compare(paths, against, console, kept=output, workers=workers, world=world)
            content, sides, rows = both.content(), {"A": both.a, "B": both.b}, paired_summary(both)
        console.end_stage()
        if as_json:
            console.json("evdit.score/1", content)
            return
        told = {name: side.clips for name, side in sides.items() if each or len(side.clips) <= EACH}
        one_by_one = [line for name, clips in told.items() for line in (*clip_table(name, clips), "")]
        width = get_terminal_size().columns if console.out.isatty() else None
        console.data("\n".join([*one_by_one, *fitting(rows, width)]))


def clip_table(name: str, clips: Iterable[ClipScore]) -> list[str]:
    """Lines of a table with a row a clip, under the name of their side."""
    return table([(name, *COLUMNS[1:]), *map(as_row, clips)])


def as_row(clip: ClipScore) -> tuple[str, ...]:
    """A clip as the table's cells: what its first object and background look like, and what of it is wrong."""
    reading, shown = clip.reading, clip.shown
    if shown is None:
        return (clip.name, "unreadable", *("-",) * 6, reading.unreadable or "")
    wrong = [check for check, right in clip.right.items() if not right and check not in ("all five", "everything")]
    return (
        clip.name,
        *(word or "-" for word in (shown.size, shown.colour, shown.shape, shown.motion, reading.background)),
        str(len(reading.objects)),
        f"{clip.fit.overlap:.3f}" if clip.fit else "-",
        ", ".join(wrong) if clip.right else "(no prompt)",
    )


def summary(found: Score) -> list[tuple[str, ...]]:
    """Rows of a score: what it is, its mean, the interval, and of how many clips."""
    rows: list[tuple[str, ...]] = [("", "mean", "95 %", "of")]
    for name, each in found.estimates.items():
        right = found.counts.get(name)
        mean = f"{right[0]}/{right[1]} = {each.value:.3f}" if right else number(name, each.value)
        rows.append((TOLD.get(name, name), mean, interval(name, each), str(each.clips)))
    if found.frechet:
        far = found.frechet
        rows.append(("Frechet distance", f"{far.distance:.4g}", "", str(far.clips)))
        rows.append(("of the world to itself", f"{far.floor:.4g}", "", str(far.clips)))
    return rows


def paired_summary(both: Comparison) -> list[tuple[str, ...]]:
    """Rows of a comparison: both sides with intervals, the paired difference, a * where it is off 0, and its pairs."""
    rows: list[tuple[str, ...]] = [("", "A", "95 %", "B", "95 %", "A - B", "95 %", "pairs")]
    for name in dict.fromkeys([*both.a.estimates, *both.b.estimates]):
        cells = [TOLD.get(name, name)]
        for side in (both.a.estimates, both.b.estimates):
            cells += [number(name, side[name].value), interval(name, side[name])] if name in side else ["-", "-"]
        each = both.differences.get(name)
        if each is None:
            cells += ["-", "-", "0"]
        else:
            mark = " *" if each.is_off_zero else ""
            cells += [f"{number(name, each.value, '+')}{mark}", interval(name, each, "+"), str(each.clips)]
        rows.append(tuple(cells))
    frechets = [side.frechet for side in (both.a, both.b)]
    if any(frechets):
        for label, key in (("Frechet distance", "distance"), ("of the world to itself", "floor")):
            cells = [cell for far in frechets for cell in (f"{getattr(far, key):.4g}" if far else "-", "")]
            rows.append((label, *cells, "", "", ""))
    for name, each in both.closeness.items():
        label = {"psnr": "PSNR to B, dB", "ssim": "SSIM to B", "equal": "equal to B"}[name]
        rows.append((label, number(name, each.value), interval(name, each), "", "", "", "", str(each.clips)))
    return rows


def fitting(rows: list[tuple[str, ...]], width: int | None) -> list[str]:
    """The rows as a table; where a terminal of `width` would break its lines, what differs stands in one below."""
    whole = table(rows)
    if width is None or len(rows[0]) <= SIDES or max(map(len, whole)) <= width:
        return whole
    parts = ([row[:SIDES] for row in rows], [(row[0], *row[SIDES:]) for row in rows])
    return [*table(parts[0]), "", *table([row for row in parts[1] if any(row[1:])])]


def number(name: str, value: float, sign: str = "") -> str:
    """A mean with as many digits as it is worth."""
    digits = {"jitter": 4, "frame motion": 4, "flicker": 4, "residual": 2, "psnr": 2}.get(name, 3)
    return f"{value:{sign}.{digits}f}"


def interval(name: str, each: Estimate, sign: str = "") -> str:
    """The interval as "[low, high]", "-" where a single prompt gives none."""
    return "[" + ", ".join(number(name, end, sign) for end in each.interval) + "]" if each.interval else "-"
