"""Other values for a run than it was begun with: which they are, whether they may be, and what run.json keeps of them.

run.json: "changes": [{"key": "learning_rate", "from": 0.001, "to": 0.0001, "part": "student", "iteration": 4}, ...]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdit_cli.errors import EvditError

if TYPE_CHECKING:
    from vdit_cli.artifacts.run_dir import Request

RUN_FILE = "run.json"
RUNNING, INTERRUPTED, FAILED, DONE = "running", "interrupted", "failed", "done"
CHANGES = "changes"
"""Key of the changes that a person insisted on, oldest first."""
FINISHED = "finished"
"""Key of what run.json said when the run was done that is being made longer now."""
SECONDS = "seconds"
"""Key of the time spent in a run, all starts of it together but for those that were killed."""

Changed = Mapping[str, tuple[Any, Any]]
"""By key what a value was and what it is."""


def differences(manifest: Mapping[str, Any], asked: Mapping[str, Any]) -> Changed:
    """The keys in which another manifest asks for something else."""
    if manifest["key"] == asked["key"]:
        return {}
    mine, other = decisive(manifest), decisive(asked)
    keys = [key for key in [*mine, *(key for key in other if key not in mine)] if mine.get(key) != other.get(key)]
    return {key: (mine.get(key), other.get(key)) for key in keys}


def decisive(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run's key, flat, with digests cut to what a person can compare."""
    inputs = {f"input {role}": each["sha256"][:12] for role, each in manifest["inputs"].items()}
    flat = {"command": manifest["command"], "model": manifest["model"], **manifest["values"], **inputs}
    return json.loads(json.dumps(flat))  # as run.json holds them: a tuple is a list there


def check_may_change(
    path: Path,
    manifest: Mapping[str, Any],
    request: Request,
    changed: Changed,
    allow_changed: bool | None,
    otherwise: Sequence[str],
) -> None:
    """Raise EvditError (exit 2) unless what `changed` may change in the run at `path`, and the person insists.

    Where the command has no flag to insist by (`allow_changed` is None) a run may be made longer without.
    """
    fixed = {key: values for key, values in changed.items() if key.removeprefix("input ") in request.fixed}
    was, now = changed.get(request.length or "", (0, 0))
    is_longer = len(changed) == 1 and isinstance(was, int | float) and now > was
    may_change = not fixed and (manifest["state"] != DONE or is_longer)
    if (allow_changed and may_change) or (allow_changed is None and is_longer):
        return
    what = "was made by another recipe"
    if allow_changed:
        what = "was begun with what can't change any more" if fixed else "is finished, with other values"
    told = fixed if allow_changed and fixed else changed
    insist = ["--allow-changed"] if may_change and allow_changed is False else []
    raise EvditError(
        f"{path} {what}: " + "; ".join(f"{key}: was {was!r}, is {now!r}" for key, (was, now) in told.items()),
        where=str(path / RUN_FILE),
        next_steps=["a new folder with -o", *insist, *otherwise],
    )


def noted(changed: Changed) -> list[dict[str, Any]]:
    """What `changed`, to be kept; where it took effect is not known yet."""
    return [{"key": key, "from": was, "to": now} for key, (was, now) in changed.items()]


def has_unplaced(manifest: Mapping[str, Any]) -> bool:
    """Whether there are changes of which it is not known yet where they took effect."""
    return any("part" not in each for each in manifest.get(CHANGES, []))


def place(manifest: Mapping[str, Any], part: str, iteration: int) -> None:
    """Note that the changes without a place took effect in `part` of the run, after so many iterations of it."""
    for each in manifest.get(CHANGES, []):
        if "part" not in each:
            each |= {"part": part, "iteration": iteration}


def changes_of(manifest: Mapping[str, Any]) -> list[str]:
    """All changes in words, oldest first."""
    return [
        in_words(each) + (f" of the {each['part']}" if "part" in each else "") for each in manifest.get(CHANGES, [])
    ]


def changes_within(manifest: Mapping[str, Any], part: str) -> list[str]:
    """The changes in the midst of `part` in words, oldest first; before its first iteration nothing had been made."""
    return [in_words(each) for each in manifest.get(CHANGES, []) if each.get("part") == part and each["iteration"]]


def in_words(change: Mapping[str, Any]) -> str:
    """A change as a person reads it."""
    told = f"`{change['key']}` from {json.dumps(change['from'])} to {json.dumps(change['to'])}"
    return f"{told} at iteration {change['iteration']}" if "iteration" in change else told
