"""`evdit search-masks --sensitivity`: another plan from a table that is there, without a model. No torch."""

from __future__ import annotations

from pathlib import Path

from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.errors import EvditError
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search.plan_choice import INSTEAD, OF_COSTS, Searched, check_not_edited, choose
from vdit_cli.search.sensitivity import FILE, SensitivityTable
from vdit_cli.tiles.plan_json import PLAN_FILE
from vdit_cli.timing import Progress

CHOOSING = ("sensitivity", "by", "r", *INSTEAD, *OF_COSTS, "fix")
"""The options that a choice from a table hangs on; all others are about measuring one."""


def choose_again(options: SearchMasksOptions, out: Path | None, progress: Progress) -> Searched:
    """Choose a plan from the table of another run, in the run `out`, which gets a copy of the table.

    Without `out` the run is `runs/<date>-search-masks-<model>`. Raises EvditError with the exit code that fits, also
    for options that would change nothing; where a recipe file, which may have served the measurement too, has such
    ones, that is said.
    """
    assert options.sensitivity is not None, "asked for by the caller"
    idle = [name for name in options.values() if name not in CHOOSING and options.where(name) is not None]
    for name in idle:
        if not options.is_from_file(name):
            raise EvditError(
                f"{options.where(name)} has no effect with --sensitivity: the table was measured already",
                where=options.where(name),
                next_steps=[f"no {options.where(name)}", "no --sensitivity, which measures anew"],
            )
    if idle:
        progress.say(f"without effect, as the table was measured already: {', '.join(idle)} of the recipe")
    table = SensitivityTable.read(options.sensitivity)
    found = choose(table, options, Path(), progress=progress)
    values = {name: value for name, value in options.values().items() if name in CHOOSING and name != "sensitivity"}
    lineage = () if table.weights is None else (table.weights,)
    values |= {"table": table.digest, "costs": found.plan.made_by.get("costs")}
    run = RunDir.start(
        out, Request("search-masks", table.model, values, origins=dict(options.origins), lineage=lineage)
    )
    found = Searched(run.path, table, found.plan, found.choice, found.steady, found.changes)
    if run.is_done():
        progress.say(f"{run.path} is done already")
        return found
    check_not_edited(run.path)
    with run:
        table.write(run.path / FILE)
        run.add_output("sensitivity", FILE)
        found.plan.write(run.path / PLAN_FILE)
        run.add_output("plan", PLAN_FILE)
    return found
