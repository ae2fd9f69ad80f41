"""A plan from a table of losses: the rule that the options ask for, applied, judged and put into words. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vdit_cli.errors import EvditError, quoted
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search.choose import (
    Choice,
    Fixed,
    Masks,
    Target,
    by_budget,
    by_threshold,
    check_number,
    judged,
    parse_fixed,
    uniform,
    with_fixed,
)
from vdit_cli.search.plan_costs import PlanCosts, call_of, read_costs
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.search.steadiness import STEADY, Steadiness, steadiness
from vdit_cli.tiles.mask import TileMask, mean_kept_share
from vdit_cli.tiles.plan import EDITED, MaskPlan
from vdit_cli.tiles.plan_json import PLAN_FILE
from vdit_cli.timing import Progress

INSTEAD = ("target_speedup", "latency", "max_loss", "uniform")
"""Rules that stand in for r; one of them at most."""
OF_COSTS = ("costs", "costs_at", "step_rest")
"""Options that say what masks cost, for any rule."""
KINDS: dict[str, Literal["speedup", "cost", "loss"]] = {
    "target_speedup": "speedup",
    "latency": "cost",
    "max_loss": "loss",
}
"""What each rule with a budget is about."""


@dataclass(frozen=True)
class Rule:
    """What the options ask for: `choose` takes losses (L, M) to a choice; `told` is it in JSON, `fixed` is of --fix."""

    choose: Callable[[np.ndarray], Choice]
    told: Mapping[str, Any]
    fixed: Fixed


@dataclass(frozen=True)
class Searched:
    """A finished search: the run folder, the table, the plan chosen from it and how sure that is.

    `changes` is the number of layers with another mask at half and at twice r, for a choice by r.
    """

    folder: Path
    table: SensitivityTable
    plan: MaskPlan
    choice: Choice
    steady: Steadiness | None
    changes: Mapping[str, int]

    def content(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        flips = [] if self.steady is None else list(self.steady.coin_flips)
        return {
            "path": str(self.folder),
            "plan": self.plan.content(),
            "met": self.choice.met,
            "changes": dict(self.changes),
            "coin_flips": flips,
            "again": None if self.steady is None else list(self.steady.shares),
        }

    def sentences(self) -> list[str]:
        """The result in words, a line a fact."""
        count = Counter(mask.name for mask in self.plan.masks)
        order = dict.fromkeys(mask.name for mask in self.table.masks if mask.name in count)
        predicted = self.plan.predicted
        kept, seconds, step = (predicted[name] for name in ("kept_share", "attention_seconds", "step_speedup"))
        cheaper = f"{self.choice.speedup:.2f} x cheaper by their number"
        lines = [
            f"{', '.join(f'{name} in {layers_told(count[name])}' for name in order)}: kept {kept:.2f} and skipped "
            f"{1 - kept:.2f} of the tiles, attention {cheaper if seconds is None else pace(self.choice.speedup)}; "
            f"summed {self.plan.made_by['by']} score {self.choice.loss:.4g}"
        ]
        if seconds is not None:
            whole = "" if step is None else f", the step {pace(step)}"
            lines.append(f"attention takes {seconds:.4g} s of a step{whole}: by {predicted['costs']}")
        if not self.choice.met:
            lines.append("no plan of these candidates meets what was asked: this one comes nearest")
        if self.changes:
            told = (f"{layers_told(count)} at {times} r" for times, count in self.changes.items())
            lines.append(f"another mask in {' and '.join(told)}")
        if self.steady is None:
            lines.append("one prompt and seed tell nothing of how steady the choice is: --num-prompts, --seeds")
        elif flips := self.steady.coin_flips:
            lines.append(
                f"coin-flips: layer{'s' if len(flips) > 1 else ''} {', '.join(map(str, flips))}, chosen again in fewer "
                f"than {STEADY:g} of {self.steady.resamples} resamples of {self.steady.prompts} prompts and seeds"
            )
        return lines


def pace(speedup: float) -> str:
    """How much faster or slower than full attention, in words."""
    return f"{speedup:.2f} x faster" if speedup >= 1 else f"{1 / speedup:.2f} x slower"


def layers_told(count: int) -> str:
    """So many layers, in words."""
    return f"{count} layer" if count == 1 else f"{count or 'no'} layers"


def the_rule(options: SearchMasksOptions) -> str:
    """The option that says how to choose; a flag or --set goes before what a recipe file says, "r" is the default.

    Raises EvditError (exit 2) for two of one kind.
    """
    given = ["r"] if options.where("r") is not None else []
    given += [name for name in INSTEAD if getattr(options, name) is not None]
    counted = [name for name in given if not options.is_from_file(name)] or given
    if len(counted) > 1:
        flags = [f"--{name.replace('_', '-')}" for name in counted]
        raise EvditError(
            f"{' and '.join(flags)} are {len(flags)} rules to choose by: one at a time",
            where=" ".join(flags),
            next_steps=[f"{flag} {getattr(options, name)}" for flag, name in zip(flags, counted, strict=True)],
        )
    return counted[0] if counted else "r"


def read_rule(options: SearchMasksOptions, masks: Sequence[TileMask], layers: int, costs: PlanCosts) -> Rule:
    """The rule that the options ask for, on these candidates at these costs.

    Raises EvditError (exit 2) for two rules at once, a number to choose by that is none, and a mask or layer that is
    not there.
    """
    asked = the_rule(options)
    fixed = parse_fixed(options.fix or "", layers, masks)
    told = {"by": options.by, **({"fix": options.fix} if fixed else {})}
    told |= {name: getattr(options, name) for name in OF_COSTS if getattr(options, name) is not None}
    if costs.table is not None:
        told["costs"] = costs.table
    if asked == "uniform" and options.uniform is not None:
        dense = options.uniform == "dense"
        mask = masks[0] if dense else TileMask.parse(options.uniform, masks[0].frames, "--uniform")
        if mask not in masks:
            names = list(dict.fromkeys(each.name for each in masks))
            raise EvditError(
                f"{mask.name} is no candidate: these are {', '.join(names)}",
                where=f"--uniform {options.uniform}",
                next_steps=[f"--uniform {name}" for name in names],
            )
        chosen = with_fixed(uniform(mask, layers), fixed)
        return Rule(lambda loss_LM: judged(chosen, loss_LM, costs.masks), {**told, "uniform": mask.name}, fixed)
    if asked in KINDS:
        value = float(getattr(options, asked))
        target = Target(KINDS[asked], value)
        return Rule(lambda loss_LM: by_budget(loss_LM, costs.masks, target, fixed), {**told, asked: value}, fixed)
    check_number(options.r, "--r", 0)

    def at_threshold(loss_LM: np.ndarray) -> Choice:
        return judged(with_fixed(by_threshold(loss_LM, masks, options.r), fixed), loss_LM, costs.masks)

    return Rule(at_threshold, {**told, "r": options.r}, fixed)


def choose(
    table: SensitivityTable,
    options: SearchMasksOptions,
    folder: Path,
    costs: PlanCosts | None = None,
    progress: Progress | None = None,
) -> Searched:
    """The plan that the options ask for, from a table; `costs` are theirs where they were read already.

    Raises EvditError as `read_rule` and `read_costs`, and for a score that the table lacks; Interrupted as
    `steadiness`.
    """
    layers = table.architecture.layers
    costs = costs or read_costs(options, table.masks, layers, lambda: call_of(table))
    rule = read_rule(options, table.masks, layers, costs)
    loss_LM = table.mean(options.by)
    choice = rule.choose(loss_LM)
    kept = mean_kept_share(choice.masks)
    plan = MaskPlan(
        backbone=table.backbone,
        grid=table.grid,
        masks=choice.masks,
        searched_on=table.weights,
        made_by={"command": "search-masks", **rule.told, "sensitivity": table.digest},
        predicted={
            "score": options.by,
            "loss": choice.loss,
            "kept_share": kept,
            "skipped_share": 1 - kept,
            "attention_speedup": choice.speedup,
            "attention_seconds": choice.cost if costs.is_seconds else None,
            "step_speedup": costs.step_speedup(choice.masks),
            "costs": costs.told,
        },
        architecture=table.architecture,
    )
    shown = progress if KINDS.keys() & rule.told.keys() else None  # other rules are done at once
    steady = steadiness(table.of_prompts(options.by), lambda loss: rule.choose(loss).masks, progress=shown)
    return Searched(folder, table, plan, choice, steady, changes(table, rule, choice.masks))


def check_not_edited(run: Path) -> None:
    """Raise EvditError (exit 2) where a person edited and sealed the plan of a run: the search would replace it."""
    file = run / PLAN_FILE
    try:
        made_by = MaskPlan.read(file).made_by
    except EvditError:
        return  # there is none, or it is damaged
    if made_by.get("command") == EDITED:
        raise EvditError(
            "the plan was edited and sealed: it is not replaced by what the search chooses",
            where=str(file),
            next_steps=[
                "another folder with -o",
                f"mv -n {quoted(file)} {quoted(run.with_name(run.name + '-edited.json'))}",
            ],
        )


def changes(table: SensitivityTable, rule: Rule, masks_L: Masks) -> dict[str, int]:
    """How many layers have another mask at half and at twice r; none for a choice that is not by r."""
    if "r" not in rule.told:
        return {}
    loss_LM = table.mean(rule.told["by"])
    found = {}
    for told, times in (("half", 0.5), ("twice", 2.0)):
        others = with_fixed(by_threshold(loss_LM, table.masks, times * rule.told["r"]), rule.fixed)
        found[told] = sum(mask != other for mask, other in zip(masks_L, others, strict=True))
    return found
