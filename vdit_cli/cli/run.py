"""`evdit run`: the stages of a recipe one after another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import AllowChanged, Json, Set, Verbose, path_argument, path_option
from vdit_cli.recipe import load

EXAMPLE = """evdit run recipes/shapes.yaml -o runs/shapes
evdit status runs/shapes"""


def command(
    recipe: Annotated[Path, path_argument("RECIPE", "A recipe file (YAML) whose run.stages names the stages.")],
    output: Annotated[
        Path | None,
        path_option(
            "-o",
            "--output",
            help="The run's folder, in which the same command goes on. [default: runs/<date>-run-<model>]",
        ),
    ] = None,
    sets: Set = None,
    allow_changed: AllowChanged = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Carry out the stages of a recipe, each in a folder of the run and by the function of its own command.

    A stage takes what the one before made (data, the latest student, the plan) unless its section names another.
    Ctrl-C once stops after the step at hand; the same command goes on there, and says of what is done already that it
    is. A stage whose section or input has changed since it was made is refused, never mixed.
    """
    resolved = load(recipe, sets or ())

    from vdit_cli.pipeline.run import run
    from vdit_cli.pipeline.status import status

    with Console(verbose=verbose) as console:
        folder = run(resolved, output, console, allow_changed)
        console.end_stage()
        if as_json:
            console.json("evdit.run-status/1", status(folder).content())
        else:
            console.data(str(folder))
