"""What a run.json must hold, whatever command made the run; a command's own keys stand beside."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vdit_cli.artifacts.changes import RUN_FILE
from vdit_cli.errors import EvditError
from vdit_cli.reader import Amount, advising, read_object

SCHEMA = "evdit.run/1"


@dataclass(frozen=True)
class InputForm:
    """A file or folder that came in."""

    name: str
    sha256: str


@dataclass(frozen=True)
class OutputForm:
    """A file or folder that was made; runs of an older evdit tell the digest of the whole only."""

    path: str
    sha256: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageForm:
    """A stage of `evdit run`."""

    folder: str


@dataclass(frozen=True)
class RunForm:
    """A run; `finished` is what was said when it was done that is being made longer now."""

    command: str
    model: str
    values: dict[str, Any]
    key: str
    inputs: dict[str, InputForm]
    lineage: list[str]
    state: Literal["running", "interrupted", "failed", "done"]
    outputs: dict[str, OutputForm]
    versions: dict[str, Any]
    machine: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    replaces: dict[str, OutputForm] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    stages: list[StageForm] = field(default_factory=list)
    seconds: Amount = 0.0
    failure: str = ""
    finished: RunForm | None = None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The run.json of a folder. Raises EvditError where it is damaged."""
    with advising(["a new folder with -o  (what this one holds stays)"]):
        return read_object(RunForm, folder / RUN_FILE, "run", SCHEMA)


def known_manifest(folder: Path) -> dict[str, Any] | None:
    """The run.json of a folder, None where it is missing or damaged."""
    try:
        return read_manifest(folder)
    except EvditError:
        return None
