"""`evdit run`: the stages of a recipe one after another, each in a folder of its own, as its own command would.

What a stage takes from the one before is a path; by which content its result stands or falls, its own run.json says
(digests of data, weights, plan and videos). So a stage refuses what has changed before it, whoever starts it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.changes import RUN_FILE
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.artifacts.run_form import known_manifest
from vdit_cli.errors import EvditError, Interrupted, quoted, setting, unknown_name
from vdit_cli.knobs import flag_name, flat, origins_told
from vdit_cli.parallel.environment import is_rank, number_of
from vdit_cli.pipeline.stages import STAGES, Work
from vdit_cli.recipe import Recipe, RunOptions
from vdit_cli.sampling.prompts import collect_prompts
from vdit_cli.timing import Progress

COMMAND = "run"
FLAG = re.compile(r"""(?<![\w-])(?P<flag>--[a-z]+(?:-[a-z]+)*)(?:(?: |=)(?P<value>"[^"]*"|'[^']*'|[^\s(-][^\s]*))?""")
"""A flag in advice, with its value."""
KEPT = ("started", "stages")
"""Keys of a run.json that stay where the same folder is gone on with under another recipe: each stage judges it."""


def run(recipe: Recipe, out: Path | None, progress: Progress, allow_changed: bool = False) -> Path:
    """Carry out the stages of a recipe in the run `out`, or go on with them; returns its folder.

    Each stage is the function of its own command, in `out/<command>`, and says itself what of it is done already.
    Without `out` the run is `runs/<date>-run-<model>`. Raises EvditError with the exit code of the stage, (2) for
    stages that don't fit each other and for a stage whose section or input has changed since, and Interrupted.
    """
    if is_rank() and number_of("WORLD_SIZE") > 1:
        raise EvditError(
            "evdit run works in one process, and this is one of several ranks",
            next_steps=["the stage's own command on them, with -o RUN/STAGE; evdit run goes on from there"],
        )
    check_stages(recipe)
    whole = begun(out, request_of(recipe))
    works = works_of(recipe, whole.path, allow_changed)
    folders = [work.folder for work in works]
    whole.manifest["stages"] = [as_noted(folder) for folder in folders]
    with whole:
        for number, work in enumerate(works):
            progress.say(f"stage {number + 1} of {len(works)}: {work.folder.name} in {work.folder}")
            try:
                with refusal_told(folders[number:]), settings_told(work.name, work.options):
                    STAGES[work.name].carry_out(work, progress)
            finally:
                progress.end_stage()
                noted = [as_noted(folder) for folder in folders]
                if noted != whole.manifest["stages"]:
                    whole.before = None  # what was made now stays, also where a later stage refuses it
                whole.manifest["stages"] = noted
                whole.save()
            if progress.should_stop() and work is not works[-1]:
                raise Interrupted(f"stopped after {work.folder.name}", next_steps=["the same command again"])
    return whole.path


def works_of(recipe: Recipe, place: Path, allow_changed: bool) -> list[Work]:
    """The stages in order, each fed. Raises EvditError (2) for options of any of them that mean nothing."""
    made: dict[str, Path] = {}
    works = []
    for name in recipe.run.stages:
        stage, folder, options = STAGES[name], place / name.replace("_", "-"), fed(recipe, name, made)
        with settings_told(name, options):
            stage.check(options)
        works.append(Work(name, options, folder, recipe, made.get("videos"), allow_changed))
        made[stage.makes] = folder
        if stage.makes == "checkpoint":
            made.pop("masks", None)  # the student has the plan that it was trained under in its folder
    return works


def check_stages(recipe: Recipe) -> None:
    """Raise EvditError (2) for a stage that is in no table or there twice, and for one without what it needs."""
    shared = recipe.run
    where = shared.where("stages") or "run.stages"
    made: set[str] = set()
    for number, name in enumerate(shared.stages):
        if name not in STAGES:
            raise unknown_name("stage", name, STAGES, where=where)
        if name in shared.stages[:number]:
            raise EvditError(f"the stage {name} stands twice: each has one folder", where=where)
        for need in STAGES[name].needs:
            if need not in made and getattr(getattr(recipe, name, None), need, None) is None:
                makers = [maker for maker, stage in STAGES.items() if stage.makes == need]
                keys = [f"--set {name}.{need}=FOLDER"] if name != "score" else []
                what = f"{name} needs {need}: no stage before it makes any"
                raise EvditError(what, where=where, next_steps=[*(f"{each} before {name}" for each in makers), *keys])
        made.add(STAGES[name].makes)
    if not shared.stages:
        raise EvditError("no stage is named", where=where, next_steps=[setting("run.stages", f"[{','.join(STAGES)}]")])
    if "generate" in shared.stages:
        if shared.prompts_file is None:
            step = "--set run.prompts_file=prompts.txt  (a file with a prompt a line)"
            raise EvditError("generate needs prompts", where="run.prompts_file", next_steps=[step])
        with origins_told(shared):
            collect_prompts((), Path(shared.prompts_file))  # now rather than after the training


def request_of(recipe: Recipe) -> Request:
    """The recipe as it was resolved, of the stages that run; what comes in is the prompts."""
    sections = ["run", *(name for name in recipe.run.stages if hasattr(recipe, name))]
    values = {key: told["value"] for name in sections for key, told in recipe.resolved(name).items()}
    file = recipe.run.prompts_file
    origins = {key: origin for key, origin in recipe.origins.items() if key in values}
    return Request(COMMAND, recipe.run.model, values, {"prompts": Path(file)} if file else {}, origins)


def begun(out: Path | None, request: Request) -> RunDir:
    """The run at `out`, new or gone on with, whatever its recipe was: a stage for which that matters refuses it.

    A refusal leaves run.json as it was. Raises EvditError (2) for the run of another command.
    """
    # Stages keep the paths that they were given, so one folder is named in one way.
    place = None if out is None else Path(os.path.abspath(out))
    if place is not None and place != Path.cwd() and place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())
    if place is None or not (place / RUN_FILE).exists():
        return RunDir.start(place, request)
    before = RunDir.of_command(place, COMMAND).manifest
    whole = RunDir(place, {**request.manifest(), **{key: before[key] for key in KEPT if key in before}})
    whole.before = before
    return whole


def fed(recipe: Recipe, name: str, made: Mapping[str, Path]) -> Any:
    """The section of a stage with what the stages before made, wherever it names nothing else; the model likewise."""
    options: Any = getattr(recipe, name, recipe.run)
    shared = recipe.run
    if name == "search_masks" and options.sensitivity is not None:
        return options  # a table that was measured already needs no model
    given = {key: str(made[key]) for key in STAGES[name].takes if key in made}
    origins = {key: f"run: the stage before, {made[key].name}" for key in given}
    if shared.where("model"):
        given["model"], origins["model"] = shared.model, str(shared.where("model"))
    unset = {key: value for key, value in given.items() if options.where(key) is None}
    return replace(options, **unset, origins={**origins, **options.origins})


@contextmanager
def refusal_told(folders: Sequence[Path]) -> Iterator[None]:
    """Let a stage's refusal of its folder, the first of `folders`, name what may go: that one and those after it."""
    place = folders[0] / RUN_FILE
    try:
        yield
    except EvditError as error:
        if error.where == str(place):
            left = " ".join(quoted(folder) for folder in folders if folder.exists())
            insist = [step for step in error.next_steps if step == "--allow-changed"]
            steps = [f"rm -r {left}  (they are then made anew)", *insist, "another folder with -o"]
            error.next_steps = tuple(steps)
        raise


@contextmanager
def settings_told(section: str, options: Any) -> Iterator[None]:
    """Let what a stage advises be what `evdit run` takes: its command's flags are settings of the recipe's section."""
    section = "run" if isinstance(options, RunOptions) else section
    flags = {flag_name(type(options), key): key for key, _ in flat(options)}

    def setting(found: re.Match[str]) -> str:
        key, value = flags.get(found["flag"]), found["value"]
        if key is None:
            return found[0]
        if isinstance(getattr(options, key, None), bool):
            return f"--set {section}.{key}=true" + found[0].removeprefix(found["flag"])
        return f"{section}.{key}" if value is None else f"--set {section}.{key}={value}"

    with origins_told(options):
        try:
            yield
        except EvditError as error:
            of_others = ("evdit ", "rm ", "iconv ")
            error.next_steps = tuple(
                step if step.startswith(of_others) else FLAG.sub(setting, step) for step in error.next_steps
            )
            raise


def as_noted(folder: Path) -> dict[str, Any]:
    """What the whole's run.json says of a stage: its state, its key and the digests of what it made."""
    told = known_manifest(folder) or {}
    outputs = {role: each["sha256"] for role, each in told.get("outputs", {}).items()}
    return {"folder": folder.name, "state": told.get("state", "not begun"), "key": told.get("key"), "outputs": outputs}
