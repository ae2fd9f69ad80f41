"""`evdit status`: where a run stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vdit_cli.cli.console import Console, duration
from vdit_cli.cli.models import table
from vdit_cli.cli.options import Json, path_argument

if TYPE_CHECKING:
    from vdit_cli.pipeline.status import Status

EXAMPLE = "evdit status runs/shapes"


def command(
    run: Annotated[Path, path_argument("RUN", "A run of `evdit run`, or of any other command.")],
    as_json: Json = False,
) -> None:
    """Show where a run stands: the state of each stage, how far it is, what it made, and what to type next.

    Files are read and nothing is written: a run that works meanwhile is not disturbed. One whose process died is told
    as interrupted. Seconds are those of all starts that were not killed.
    """
    from vdit_cli.pipeline.status import status

    found = status(run)
    console = Console()
    if as_json:
        console.json("evdit.run-status/1", found.content())
    else:
        console.data("\n".join(lines(found)))


def lines(found: Status) -> list[str]:
    """A table with a row a stage, why one failed, and the next command."""
    rows: list[tuple[str, ...]] = [("stage", "state", "progress", "time", "made")]
    for each in found.stages:
        at = each.progress
        counted = f"{at.done}/{at.of} {at.unit}" if at else "-"
        spent = "-" if each.seconds is None else duration(each.seconds)
        made = each.folder if len(each.outputs) > 1 else next(iter(each.outputs), "-")
        rows.append((each.command, each.state, counted, spent, made))
    why = [f"why: {found.failure}"] if found.failure else []
    step = [f"next: {found.next_command}"] if found.next_command else []
    return [f"{found.path}: {found.state}", *table(rows), *why, *step]
