"""A run: the folder that one command makes, with `run.json` saying what was asked, what came in and what came out.

The same command on the same folder goes on or says that it is done; its key, a digest of the section's values and of
the inputs, decides what "the same" is. Paths in run.json are relative and stay inside the folder.
"""

from __future__ import annotations

import datetime
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from vdit_cli.artifacts import unfinished
from vdit_cli.artifacts.atomic import check_writable, readable, through_links, write_json
from vdit_cli.artifacts.changes import (
    CHANGES,
    DONE,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RUN_FILE,
    RUNNING,
    SECONDS,
    Changed,
    check_may_change,
    differences,
    noted,
)
from vdit_cli.artifacts.digest import content_digest, file_digest, file_digests, path_digest
from vdit_cli.artifacts.lock import LOCK, FolderLock
from vdit_cli.artifacts.receipt import this_machine, versions
from vdit_cli.artifacts.run_card import CARD, is_own_card, write_card
from vdit_cli.artifacts.run_form import SCHEMA, known_manifest, read_manifest
from vdit_cli.errors import USAGE, EvditError, Interrupted, brief, quoted

REPLACES = "replaces"
"""Key of the outputs of the run before, in the same folder, that have no successor yet."""
CARRIED = ("outputs", REPLACES, CHANGES, FINISHED, SECONDS)
"""Keys of a run that stay where it goes on with other values."""
LONGEST_NAME = 255
"""Bytes of a name in a file system."""


@dataclass(frozen=True)
class Request:
    """What decides a run: the command, the model, the values of its section by dotted key, and the files it reads.

    `origins` says where each value was set and is kept for the reader only. `lineage` are the digests of the weights
    that come in, and of those that they came from. `fixed` are the keys (of values and inputs) that shape what a run
    holds, so that it can't go on with others; `length` is the key that makes a finished run longer.
    """

    command: str
    model: str
    values: Mapping[str, Any]
    inputs: Mapping[str, Path] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    length: str | None = None

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
    """A run folder. `with run:` holds its lock and writes how it ended: done, interrupted, or failed and why.

    A run that takes the place of another one (`anew`) changes nothing on the disk before its first output.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], since: RunDir | None = None) -> None:
        self.path = path
        self.manifest = manifest
        self.lock = FolderLock(path)
        self.waits = False
        self.entered = 0.0
        self.before: dict[str, Any] | None = None
        """What run.json said before `--allow-changed` insisted on other values."""
        self.since = since
        """The same folder as it is now, where this run is one that was finished and is being made longer since."""

    @classmethod
    def create(cls, path: Path | str, request: Request) -> RunDir:
        """A new run at `path`, written when it is entered. Raises EvditError for a folder with a run or other files."""
        path = Path(path)
        if not is_free(path):
            why = "it holds a run already" if (path / RUN_FILE).exists() else "it is not an empty folder"
            raise EvditError(
                f"{path} can't become a run: {why}", where=f"-o {path}", next_steps=["a new folder with -o"]
            )
        check_writable(path / RUN_FILE, where=f"-o {path}")
        return cls(path, request.manifest())

    @classmethod
    def open(cls, path: Path | str) -> RunDir:
        """The run at `path`, to read. Raises EvditError where there is none or run.json is damaged."""
        path = Path(path)
        if not (path / RUN_FILE).exists():
            why = "it has no run.json" if os.path.lexists(path) else "there is no such folder"
            raise EvditError(f"{path} is no run: {why}", where=str(path), next_steps=["a folder made by evdit"])
        return cls(path, read_manifest(path))

    @classmethod
    def of_command(cls, path: Path | str, command: str) -> RunDir:
        """The run at `path`, which must be one of `command`. Raises EvditError (exit 2) for that of another command."""
        run = cls.open(path)
        if run.manifest["command"] != command:
            raise EvditError(
                f"{path} is a run of evdit {run.manifest['command']}: evdit {command} leaves it alone",
                where=str(run.path / RUN_FILE),
                next_steps=["a new folder with -o"],
            )
        return run

    @classmethod
    def resume(
        cls, path: Path | str, request: Request, allow_changed: bool | None = None, otherwise: Sequence[str] = ()
    ) -> RunDir:
        """The run at `path` to go on with, or as it is where it is done (`is_done`).

        Raises EvditError (exit 2), naming the keys that differ, for a run that was asked for something else, unless it
        holds nothing yet, or `allow_changed` (None: the command has no such flag) and nothing of `request.fixed`
        differs; a finished run can only be made longer, and until that is done it is still there for its own request
        (`since` is what was begun). `otherwise` are further steps to offer.
        """
        run, asked = cls.of_command(path, request.command), request.manifest()
        changed = differences(run.manifest, asked)
        if not changed:
            return run
        finished = run.manifest.get(FINISHED, {})
        if finished.get("key") == asked["key"]:
            was = cls(run.path, finished, since=run)
            if was.is_done():
                return was
            raise _lost_while_longer(run.path, changed)
        is_begun = holds_files(run.path)
        if is_begun:
            check_may_change(run.path, run.manifest, request, changed, allow_changed, otherwise)
        run.before = dict(run.manifest) if is_begun else None
        carried = {key: run.manifest[key] for key in CARRIED if key in run.manifest}
        if run.before:
            carried[CHANGES] = [*run.manifest.get(CHANGES, []), *noted(changed)]
            if run.before["state"] == DONE:
                carried[FINISHED] = run.before
        run.manifest = {**asked, **carried}
        return run

    @classmethod
    def start(
        cls,
        path: Path | str | None,
        request: Request,
        allow_changed: bool | None = None,
        otherwise: Sequence[str] = (),
    ) -> RunDir:
        """Create the run at `path`, or resume it if it is there.

        Without a path: the run of today, or one of an earlier day that has not ended, if it was asked for the same
        (now, or before it was made longer); else `runs/<date>-<command>-<model>`, with -2, -3, ... where that is taken.
        Raises EvditError (exit 2) as `resume` and `create` do, and with `allow_changed` where there are only others.
        """
        if path is not None:
            made = (Path(path) / RUN_FILE).exists()
            return cls.resume(path, request, allow_changed, otherwise) if made else cls.create(path, request)
        today, key = default_path(request), request.manifest()["key"]
        alike = re.compile(r"\d{4}-\d\d-\d\d" + re.escape(today.name[10:]) + r"(-\d+)?")
        folders = sorted(today.parent.iterdir(), reverse=True) if today.parent.is_dir() else []
        for folder in folders:
            is_alike = alike.fullmatch(folder.name)
            known = known_manifest(folder) if is_alike else None
            is_todays = folder.name.startswith(today.name[:10])
            keys = (known.get("key"), known.get(FINISHED, {}).get("key")) if known else ()
            if known and key in keys and (is_todays or known.get("state") != DONE):
                return cls.resume(folder, request)
        if allow_changed and (others := [each for each in folders if alike.fullmatch(each.name)]):
            raise EvditError(
                "--allow-changed goes on with a run that was asked for something else: which one?",
                where="--allow-changed",
                next_steps=[*(f"-o {quoted(each)}" for each in others[:3]), "no --allow-changed"],
            )
        names = (today if number == 1 else today.with_name(f"{today.name}-{number}") for number in count(1))
        return cls.create(next(filter(is_free, names)), request)

    @classmethod
    def anew(cls, path: Path | str, request: Request) -> RunDir:
        """The run of `request` in place of one of the same command at `path`.

        What the old one made stays until a successor takes its place, or else until the new run is done. One that was
        begun anew for the same request, and has not ended, goes on. Raises EvditError (exit 2) for the run of another
        command.
        """
        old, asked = cls.of_command(path, request.command), request.manifest()
        if old.manifest["state"] != DONE and not differences(old.manifest, asked):
            return old
        run = cls(old.path, {**asked, REPLACES: {**old.manifest.get(REPLACES, {}), **old.manifest["outputs"]}})
        run.waits = True
        return run

    def __enter__(self) -> RunDir:
        try:
            through_links(self.path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise readable(error, self.path) from error
        self.lock.take()
        unfinished.clear(self.path)
        self.entered = time.monotonic()
        self.manifest["state"] = RUNNING
        for told in ("failure", "ended"):
            self.manifest.pop(told, None)
        if not self.waits:
            self.save()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.waits:
                return
            if self.before is not None and isinstance(error, EvditError) and error.exit_code == USAGE:
                self.manifest = self.before  # the other values were refused
                self.save()
                return
            if error is None:
                self.remove_replaced()
                self.manifest.pop(FINISHED, None)
                self.manifest["state"] = DONE
            elif isinstance(error, (Interrupted, KeyboardInterrupt)):
                self.manifest["state"] = INTERRUPTED
            else:
                self.manifest["state"] = FAILED
                self.manifest["failure"] = str(error) or type(error).__name__
            self.manifest["ended"] = now()
            self.manifest[SECONDS] = round(self.manifest.get(SECONDS, 0.0) + time.monotonic() - self.entered, 3)
            write_card(self.path, self.manifest)
            self.save()
        finally:
            unfinished.clear(self.path)
            self.lock.release()

    def add_output(self, role: str, relative: str, *others: str) -> None:
        """Write into run.json a finished file or folder as `note_output` takes it."""
        self.note_output(role, relative, *others)
        self.save()

    def note_output(self, role: str, relative: str, *others: str) -> None:
        """Note a finished file or folder under `role`, with the digest of each of its files, for the next `save`.

        `others` are files that belong to it, such as the receipt of a video. Raises EvditError for one outside.
        """
        path = self.inside(relative)
        if path.is_dir():
            inner = file_digests(path)
            whole, files = content_digest(inner), {f"{relative}/{name}": digest for name, digest in inner.items()}
        else:
            whole = path_digest(path)
            files = {relative: whole}
        files |= {name: path_digest(self.inside(name)) for name in others}
        self.manifest["outputs"][role] = {"path": relative, "sha256": whole, "files": files}
        replaced = self.manifest.get(REPLACES, {})
        for other in [other for other, output in replaced.items() if output["path"] == relative]:
            del replaced[other]
        self.waits = False

    def is_whole(self, role: str) -> bool:
        """Whether an output was made, and each of its files is still what it was then. Others beside them don't count.

        Raises EvditError for a path that leaves the folder.
        """
        output = self.manifest["outputs"].get(role)
        if output is None:
            return False
        if "files" not in output:  # noted by an evdit that told the digest of the whole only
            path = self.inside(output["path"])
            return path.exists() and path_digest(path) == output["sha256"]
        files = {self.inside(name): digest for name, digest in output["files"].items()}
        return all(path.is_file() and file_digest(path) == digest for path, digest in files.items())

    def remove_replaced(self) -> None:
        """Remove what the run before made here and this one did not make again, where it is still what it was."""
        for output in self.manifest.pop(REPLACES, {}).values():
            for name, digest in output.get("files", {output["path"]: output["sha256"]}).items():
                path = self.inside(name)
                if path.is_file() and file_digest(path) == digest:
                    path.unlink()

    def find(self, role: str) -> Path:
        """Where the output `role` stands. Raises EvditError for one not made, a lost file, or a path that leaves."""
        outputs = self.manifest["outputs"]
        if role not in outputs:
            made = ", ".join(sorted(outputs)) or "nothing"
            state = self.state()
            look = f"evdit status {quoted(self.path)}  (what was made, and where)"
            raise EvditError(
                f"the run {self.path} made no {role}: it made {made}, and is {state}",
                where=str(self.path / RUN_FILE),
                next_steps=[look if state == DONE else f"let its command, {self.manifest['command']}, go on"],
            )
        path = self.inside(outputs[role]["path"])
        if not path.exists():
            raise EvditError(f"{path} is gone, though run.json names it", where=str(self.path / RUN_FILE))
        return path

    def inside(self, relative: str) -> Path:
        """A relative path of run.json as a path. Raises EvditError if it leaves the folder, through a link too."""
        pure = PurePosixPath(relative)
        if "\0" in relative or any(len(os.fsencode(part)) > LONGEST_NAME for part in pure.parts):
            raise EvditError(f"{brief(relative)} is no path that a file can have", where=str(self.path / RUN_FILE))
        path = self.path / pure
        if (
            pure.is_absolute()
            or ".." in pure.parts
            or self.path.resolve() not in [path.resolve(), *path.resolve().parents]
        ):
            raise EvditError(f"{relative!r} leaves the run's folder", where=str(self.path / RUN_FILE))
        return path

    def lineage(self) -> tuple[str, ...]:
        """Digests of the weights that this run's own came from, nearest first."""
        return tuple(self.manifest["lineage"])

    def state(self) -> str:
        """running, interrupted, failed or done; a run whose process died is interrupted."""
        told = str(self.manifest["state"])
        return INTERRUPTED if told == RUNNING and not self.lock.is_held() else told

    def is_done(self) -> bool:
        """Whether there is nothing left to do: the run ended well, and all that it made is still whole."""
        return self.manifest["state"] == DONE and all(self.is_whole(role) for role in self.manifest["outputs"])

    def save(self) -> None:
        """Write run.json, whole or not at all."""
        write_json(self.path / RUN_FILE, self.manifest)


def _lost_while_longer(path: Path, changed: Changed) -> EvditError:
    """The error for the finished run that is not whole any more, though only the longer one would replace it."""
    values = ", ".join(f"{key}={was}" for key, (was, _) in changed.items())
    return EvditError(
        f"{path} is being made longer, and what it had made before is damaged or gone",
        where=str(path),
        next_steps=[f"the command that makes it longer ({values}), which writes it anew", "a new folder with -o"],
    )


def is_free(path: Path) -> bool:
    """Whether a run can begin at `path`: nothing is there, or a folder that holds nothing."""
    return not path.exists() or (path.is_dir() and not (path / RUN_FILE).exists() and not holds_files(path))


def holds_files(folder: Path) -> bool:
    """Whether a file is in a folder or below it, but for those that say what a run is, and what was left unfinished.

    It looks no further than the first: a folder of somebody's may be as large as a disk.
    """
    own = [folder / name for name in (RUN_FILE, LOCK, unfinished.FILE)]
    card = folder / CARD
    left = [temporary for temporary, _ in unfinished.noted(folder)]
    return any(
        not file.is_dir()
        and file not in own
        and not (file == card and is_own_card(card))
        and not any(file == each or each in file.parents for each in left)
        for file in folder.rglob("*")
    )


def default_path(request: Request) -> Path:
    """`runs/<date>-<command>-<model>`, the model a name, a hub id or the last part of its path."""
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(request.model).name or "model")
    return Path("runs") / f"{datetime.date.today().isoformat()}-{request.command}-{model}"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
