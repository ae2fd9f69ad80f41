"""How a bench ends whose results are written and are still no success: the error that the command raises at its end."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vdit_cli.errors import OUT_OF_MEMORY, EvditError


class BenchFailed(EvditError):
    """An error that comes after the results: `results` holds what is in results.json, to be printed first."""

    def __init__(
        self, what: str, results: dict[str, Any], *, where: Path, next_steps: Iterable[str], exit_code: int
    ) -> None:
        super().__init__(what, where=str(where), next_steps=next_steps, exit_code=exit_code)
        self.results = results


def check_measured(
    rows: Iterable[tuple[float | None, str | None]], results: dict[str, Any], where: Path, next_steps: Iterable[str]
) -> None:
    """Raise BenchFailed (exit 4) where no row, given as its time and its note, has a time for want of memory."""
    rows = list(rows)
    starved = sum(1 for _, note in rows if note is not None and note.startswith("out of memory"))
    if starved and all(ms is None for ms, _ in rows):
        raise BenchFailed(
            f"nothing was measured: {starved} of {len(rows)} rows ran out of memory",
            results,
            where=where,
            next_steps=next_steps,
            exit_code=OUT_OF_MEMORY,
        )
