"""`evdit status`: where a run stands, read from its files alone. No torch, nothing is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.changes import DONE, RUN_FILE, RUNNING, SECONDS
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.errors import EvditError, quoted
from vdit_cli.reader import Index, read_last

NOT_BEGUN = "not begun"
SEVERAL = "run"
"""The command whose run holds others."""
FROM_FILE = re.compile(r"(.+):\d+ \S+")
"""The origin of a value that a recipe file set."""
EXAMPLE = '"a small blue ring bouncing over a navy background"'


@dataclass(frozen=True)
class Progress:
    """How many units of its work a stage has done, of how many."""

    done: int
    of: int
    unit: str


@dataclass(frozen=True)
class StageState:
    """A run of one command: its state, how far it is, the seconds spent in it, why it failed, and what it made."""

    command: str
    folder: str
    state: str
    progress: Progress | None = None
    seconds: float | None = None
    failure: str | None = None
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """A run, its stages (itself, where it is of one command), and what to type next."""

    path: str
    command: str
    state: str
    stages: tuple[StageState, ...]
    next_command: str | None
    failure: str | None = None

    def content(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def status(path: Path) -> Status:
    """Where the run at `path` stands: of `evdit run` or of any other command.

    A process that works on it is told from one that died by the lock, which the system lets go of. Raises EvditError
    for a folder that is no run, or whose run.json is damaged or names stages outside.
    """
    run = RunDir.open(path)
    command = run.manifest["command"]
    stages = tuple(stage_state(run.inside(each["folder"]), each["folder"]) for each in run.manifest.get("stages", []))
    if command != SEVERAL:
        stages = (stage_state(path, command),)
    return Status(str(path), command, run.state(), stages, next_command(run), run.manifest.get("failure"))


def stage_state(folder: Path, command: str) -> StageState:
    """The state of the run of one command, "not begun" where there is no run.json yet."""
    if not (folder / RUN_FILE).exists():
        return StageState(command, str(folder), NOT_BEGUN)
    run = RunDir.open(folder)
    manifest = run.manifest
    count = PROGRESS.get(manifest["command"], lambda *_: None)
    try:
        progress = count(manifest, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        file = folder / RUN_FILE
        rule = f"{file} does not hold the values of evdit {manifest['command']}: {type(error).__name__} {error}"
        raise EvditError(rule, where=f"{file} values", next_steps=["a new folder with -o"]) from error
    outputs = dict.fromkeys(str(folder / each["path"]) for each in manifest["outputs"].values())
    return StageState(
        manifest["command"],
        str(folder),
        run.state(),
        progress,
        manifest.get(SECONDS),
        manifest.get("failure"),
        tuple(outputs),
    )


def _clips(manifest: Mapping[str, Any], folder: Path) -> Progress:
    values, shards = manifest["values"], len(list((folder / "shards").glob("[0-9]*.json")))
    return Progress(min(shards * values["shard_clips"], values["count"]), values["count"], "clips")


def _iterations(manifest: Mapping[str, Any], folder: Path) -> Progress:
    """Of all students of a distillation together, as far as their metrics tell."""
    values = manifest["values"]
    counts = str(values.get("steps", "")).split(",")
    folders = [folder] if len(counts) == 1 else [folder / f"steps-{count.strip()}" for count in counts]
    return Progress(sum(map(_last_iteration, folders)), values["iterations"] * len(folders), "iterations")


@dataclass(frozen=True)
class Line:
    """What every line of metrics.jsonl has."""

    iteration: Index


def _last_iteration(folder: Path) -> int:
    """That of the last whole line of the metrics; one that is being written is left out."""
    last = read_last(Line, folder / "metrics.jsonl", "log")
    return last["iteration"] if last else 0


def _trajectories(manifest: Mapping[str, Any], folder: Path) -> Progress | None:
    values = manifest["values"]
    if "prompts" not in values:  # chosen again from the table of another run
        return None
    seeds = {seed.strip() for seed in values["seeds"].split(",")}
    return Progress(len(list(folder.glob("samples/pair-*.json"))), len(values["prompts"]) * len(seeds), "trajectories")


def _videos(manifest: Mapping[str, Any], folder: Path) -> Progress:
    made = [role for role in manifest["outputs"] if role.startswith("video ")]
    return Progress(len(made), len(manifest["values"]["prompts"]) * manifest["values"]["num"], "videos")


PROGRESS: dict[str, Callable[[Mapping[str, Any], Path], Progress | None]] = {
    "prepare-data": _clips,
    "distill-mlcd": _iterations,
    "search-masks": _trajectories,
    "distill-kd": _iterations,
    "generate": _videos,
}
"""What is counted of a run, by its command; of others nothing is."""

AFTER = {
    "analyze": "evdit search-masks --model {model}",
    "prepare-data": "evdit distill-mlcd --data {run}",
    "distill-mlcd": f"evdit generate {EXAMPLE} --checkpoint {{run}}",
    "search-masks": "evdit masks show {run}",
    "distill-kd": f"evdit generate {EXAMPLE} --checkpoint {{run}}",
    "generate": "evdit score {run}",
    "train-shapes": f"evdit generate {EXAMPLE} --model {{run}}/model",
}
"""What a finished run is good for, by its command."""


def next_command(run: RunDir) -> str | None:
    """What to type now: to look on, to go on, or to use what was made, if a command does; of a stage its whole's."""
    above = run.path.absolute().parent
    if run.manifest["command"] != SEVERAL and (above / RUN_FILE).is_file():
        whole = RunDir.open(above)
        if whole.manifest["command"] == SEVERAL:
            return next_command(RunDir(Path(os.path.relpath(above)), whole.manifest))
    state = run.state()
    if state == RUNNING:
        return f"evdit status {quoted(run.path)}"
    if state != DONE:
        return " ".join(again(run))
    folders = [each["folder"] for each in run.manifest.get("stages", [])]
    made = {each: run.path / each for each in folders} or {run.manifest["command"]: run.path}
    useful = [each for each in made if each.startswith("distill-")] or [each for each in made if each in AFTER]
    words = {"run": quoted(made[useful[-1]]), "model": quoted(run.manifest["model"])} if useful else {}
    return AFTER[useful[-1]].format(**words) if useful else None


def again(run: RunDir) -> list[str]:
    """The words of the command that made a run, from where its values were set."""
    manifest = run.manifest
    words: list[tuple[str, ...]] = []
    for origin in manifest["origins"].values():
        if origin.startswith("--"):
            words.append((origin,))
        elif found := FROM_FILE.fullmatch(origin):
            words.append((quoted(found[1]),) if manifest["command"] == SEVERAL else ("--config", quoted(found[1])))
    prompts = [quoted(prompt) for prompt in manifest["values"]["prompts"]] if manifest["command"] == "generate" else []
    options = [word for each in dict.fromkeys(words) for word in each]
    return ["evdit", manifest["command"], *prompts, *options, "-o", quoted(run.path)]
