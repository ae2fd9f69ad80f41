"""A run: the folder that one command makes, with `run.json` saying what was asked, what came in and what came out.

The same command on the same folder goes on or says that it is done; its key, a digest of the section's values and of
the inputs, decides what "the same" is. Paths in run.json are relative and stay inside the folder.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from vdit_cli.artifacts.atomic import remove_leftovers, write_json
from vdit_cli.artifacts.digest import content_digest, file_digest
from vdit_cli.artifacts.lock import FolderLock
from vdit_cli.artifacts.receipt import read_object, this_machine, versions
from vdit_cli.artifacts.run_card import write_card
from vdit_cli.errors import EvditError, Interrupted

SCHEMA = "evdit.run/1"
RUNNING, INTERRUPTED, FAILED, DONE = "running", "interrupted", "failed", "done"

NEEDED = {"command", "model", "values", "key", "inputs", "lineage", "state", "outputs", "versions", "machine"}
"""Keys without which a run.json is damaged."""


@dataclass(frozen=True)
class Request:
    """What decides a run: the command, the model, the values of its section by dotted key, and the files it reads.

    `origins` says where each value was set and is kept for the reader only. `lineage` are the digests of the weights
    that come in, and of those that they came from.
    """

    command: str
    model: str
    values: Mapping[str, Any]
    inputs: Mapping[str, Path] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()

    def manifest(self) -> dict[str, Any]:
        """A run.json for this request, nothing done yet."""
        inputs = {role: {"name": path.name, "sha256": path_digest(path)} for role, path in self.inputs.items()}
        decisive: dict[str, Any] = {"command": self.command, "model": self.model, "values": dict(self.values)}
        content = {role: each["sha256"] for role, each in inputs.items()}
        return {
            "schema": SCHEMA,
            **decisive,
            "origins": dict(self.origins),
            "key": content_digest({"schema": SCHEMA, **decisive, "inputs": content}),
            "inputs": inputs,
            "lineage": list(self.lineage),
            "state": RUNNING,
            "started": now(),
            "outputs": {},
            "versions": versions(),
            "machine": asdict(this_machine()),
        }


class RunDir:
    """A run folder. `with run:` holds its lock and writes how it ended: done, interrupted, or failed and why."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.lock = FolderLock(path)

    @classmethod
    def create(cls, path: Path | str, request: Request) -> RunDir:
        """A new run at `path`. Raises EvditError for a folder that holds a run or other files."""
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            why = "it holds a run already" if (path / "run.json").exists() else "it is not an empty folder"
            raise EvditError(
                f"{path} can't become a run: {why}", where=f"-o {path}", next_steps=["a new folder with -o"]
            )
        run = cls(path, request.manifest())
        run.save()
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """The run at `path`, to read. Raises EvditError where there is none or run.json is damaged."""
        path = Path(path)
        if not (path / "run.json").is_file():
            raise EvditError(
                f"{path} is no run: it has no run.json", where=str(path), next_steps=["a folder made by evdit"]
            )
        manifest = read_object(path / "run.json", SCHEMA)
        missing = NEEDED - manifest.keys()
        if missing:
            raise EvditError(f"{path / 'run.json'} lacks {', '.join(sorted(missing))}", where=str(path / "run.json"))
        return cls(path, manifest)

    @classmethod
    def resume(cls, path: Path | str, request: Request, allow_changed: bool | None = None) -> RunDir:
        """The run at `path` to go on with, or as it is where it is done (`is_done`).

        Raises EvditError (exit 2), naming the keys that differ, for a run that was asked for something else, unless
        `allow_changed` (None: the command has no flag `--allow-changed`).
        """
        run, asked = cls.open(path), request.manifest()
        changed = run.differences(asked)
        if changed and not allow_changed:
            raise EvditError(
                f"{path} was made by another recipe: " + "; ".join(changed),
                where=f"{run.path / 'run.json'}",
                next_steps=["a new folder with -o", *(["--allow-changed"] if allow_changed is not None else [])],
            )
        if changed:
            run.manifest = {**asked, "outputs": run.manifest["outputs"]}
        return run

    @classmethod
    def start(cls, path: Path | str | None, request: Request, allow_changed: bool | None = None) -> RunDir:
        """Create the run at `path`, or resume it if it is there.

        Without a path: `runs/<date>-<command>-<model>`, with -2, -3, ... where that was made by another recipe.
        """
        if path is not None:
            made = (Path(path) / "run.json").exists()
            return cls.resume(path, request, allow_changed) if made else cls.create(path, request)
        base, number = default_path(request), 1
        while True:
            tried = base if number == 1 else base.with_name(f"{base.name}-{number}")
            if not tried.exists():
                return cls.create(tried, request)
            if (tried / "run.json").exists() and not cls.open(tried).differences(request.manifest()):
                return cls.resume(tried, request)
            number += 1

    def __enter__(self) -> RunDir:
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock.take()
        remove_leftovers(self.path)
        self.manifest["state"] = RUNNING
        for told in ("failure", "ended"):
            self.manifest.pop(told, None)
        self.save()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.manifest["state"] = DONE
            elif isinstance(error, (Interrupted, KeyboardInterrupt)):
                self.manifest["state"] = INTERRUPTED
            else:
                self.manifest["state"] = FAILED
                self.manifest["failure"] = str(error) or type(error).__name__
            self.manifest["ended"] = now()
            self.save()
            write_card(self.path, self.manifest)
        finally:
            self.lock.release()

    def add_output(self, role: str, relative: str) -> None:
        """Note a finished file or folder under `role`, with its digest. Raises EvditError for one outside."""
        self.manifest["outputs"][role] = {"path": relative, "sha256": path_digest(self.inside(relative))}
        self.save()

    def find(self, role: str) -> Path:
        """Where the output `role` stands. Raises EvditError for one not made, a lost file, or a path that leaves."""
        outputs = self.manifest["outputs"]
        if role not in outputs:
            made = ", ".join(sorted(outputs)) or "nothing"
            state = self.state()
            raise EvditError(
                f"the run {self.path} made no {role}: it made {made}, and is {state}",
                where=str(self.path / "run.json"),
                next_steps=[] if state == DONE else [f"let its command, {self.manifest['command']}, go on"],
            )
        path = self.inside(outputs[role]["path"])
        if not path.exists():
            raise EvditError(f"{path} is gone, though run.json names it", where=str(self.path / "run.json"))
        return path

    def inside(self, relative: str) -> Path:
        """A relative path of run.json as a path. Raises EvditError if it leaves the folder, through a link too."""
        pure = PurePosixPath(relative)
        path = self.path / pure
        if (
            pure.is_absolute()
            or ".." in pure.parts
            or self.path.resolve() not in [path.resolve(), *path.resolve().parents]
        ):
            raise EvditError(f"{relative!r} leaves the run's folder", where=str(self.path / "run.json"))
        return path

    def lineage(self) -> tuple[str, ...]:
        """Digests of the weights that this run's own came from, nearest first."""
        return tuple(self.manifest["lineage"])

    def state(self) -> str:
        """running, interrupted, failed or done; a run whose process died is interrupted."""
        told = str(self.manifest["state"])
        return INTERRUPTED if told == RUNNING and not self.lock.is_held() else told

    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.manifest["state"] == DONE

    def differences(self, asked: Mapping[str, Any]) -> list[str]:
        """The keys in which another manifest asks for something else, as "key: was X, is Y"."""
        if self.manifest["key"] == asked["key"]:
            return []
        mine, other = decisive(self.manifest), decisive(asked)
        keys = [key for key in [*mine, *(key for key in other if key not in mine)] if mine.get(key) != other.get(key)]
        return [f"{key}: was {mine.get(key)!r}, is {other.get(key)!r}" for key in keys]

    def save(self) -> None:
        """Write run.json, whole or not at all."""
        write_json(self.path / "run.json", self.manifest)


def decisive(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's key, flat, with digests cut to what a person can compare."""
    inputs = {f"input {role}": each["sha256"][:12] for role, each in manifest["inputs"].items()}
    return {"command": manifest["command"], "model": manifest["model"], **manifest["values"], **inputs}


def default_path(request: Request) -> Path:
    """`runs/<date>-<command>-<model>`, the model a name, a hub id or the last part of its path."""
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(request.model).name or "model")
    return Path("runs") / f"{datetime.date.today().isoformat()}-{request.command}-{model}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of a folder's files. Raises EvditError where nothing is."""
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        raise EvditError(f"{path} is not there", where=str(path))
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    return content_digest({file.relative_to(path).as_posix(): file_digest(file) for file in files})
