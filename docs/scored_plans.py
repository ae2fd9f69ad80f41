"""What the scripts about plans share: the scores of their videos, the plans themselves, and what they cost."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mask_plans import ASSIGNMENTS
from script import fitting, read_json

from vdit_cli.errors import EvditError
from vdit_cli.evaluation.intervals import Estimate, differences, estimate
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search.plan_costs import PlanCosts, call_of, read_costs
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.tiles.plan import MaskPlan

CHECKS = ("all five", "motion")
FITS = ("overlap", "residual")
Table = dict[str, Any]


class Scored:
    """What `evdit score --json` said of one plan's videos: `columns` has one number a video by name."""

    def __init__(self, content: Mapping[str, Any], path: Path) -> None:
        """Raises EvditError for content that is no score."""
        with fitting(path):
            videos = content["videos"]
            if not videos:
                raise LookupError("no video")
            self.groups = [video["prompt"] for video in videos]
            self.keys = [(video["prompt"], video["seed"]) for video in videos]
            self.columns: dict[str, list[float | None]] = {
                **{check: [float(video["right"][check]) for video in videos] for check in CHECKS},
                **{fit: [video["fit"] and video["fit"][fit] for video in videos] for fit in FITS},
            }

    def mean(self, name: str) -> Estimate:
        """A column's mean with its interval over prompts."""
        return estimate({name: self.columns[name]}, self.groups)[name]

    def more_than(self, others: Sequence[Scored], name: str) -> Estimate:
        """The mean paired difference to the mean of `others`, with its interval over prompts."""
        columns = [other.columns[name] for other in others]
        mean = [float(np.mean(each)) if None not in each else None for each in zip(*columns, strict=True)]
        return estimate(differences({name: self.columns[name]}, {name: mean}), self.groups)[name]


def read_scores(folder: Path) -> dict[str, Scored]:
    """The scores in a folder by plan. Raises EvditError where they are not of the same prompts and seeds."""
    found = {path.stem: Scored(read_json(path), path) for path in sorted(folder.glob("*.json"))}
    for name, scored in found.items():
        if scored.keys != next(iter(found.values())).keys:
            raise EvditError(f"the videos of {name} are not those of {next(iter(found))}", where=str(folder))
    return found


def told(found: Estimate, sign: str = "") -> str:
    """An estimate as "0.945 [0.925, 0.963]"."""
    low, high = found.interval or (float("nan"), float("nan"))
    return f"{found.value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def read_plans(folder: Path, plans: Mapping[str, str], scores: Path) -> dict[str, MaskPlan]:
    """The plans in a folder by name; how many no score is of is told.

    `plans` tells by the names of the scores in the folder `scores` of which plan each is. Raises EvditError for none.
    """
    known = {path.stem: MaskPlan.read(path) for path in sorted(folder.glob("*.json"))}
    for name, plan in plans.items():
        if plan not in known:
            raise EvditError(f"{plan} is no plan of {folder}", where=str(scores / f"{name}.json"))
    left = len(set(known) - set(plans.values()))
    sys.stderr.write(f"{scores.name}: {len(plans)} scores, {left} plans without one\n")
    return known


def prices_of(table: SensitivityTable, *costs: str) -> PlanCosts:
    """The seconds of each mask of a search in Open-Sora-Plan's size, by the first of the cost tables that has them.

    Raises EvditError, that of the last one, where none has.
    """
    *others, last = costs
    for each in others:
        with suppress(EvditError):
            return prices_of(table, each)
    options = SearchMasksOptions(costs=last, costs_at="open-sora-plan-29")
    return read_costs(options, table.masks, table.architecture.layers, partial(call_of, table))


def at_equal_cost(scores: Mapping[str, Scored], plans: Mapping[str, MaskPlan]) -> Table:
    """Searched plans beside the uniform mask of equal kept share, and beside the same masks in random layers."""
    rows = []
    for name in scores:
        found = re.fullmatch(r"budget-(\w+)-(.+)|r-(\d+)", name)
        if found is None:
            continue
        place = found[2] or found[3]
        control = f"uniform-{place}"
        others = [scores[each] for seed in range(ASSIGNMENTS) if (each := f"random-{place}-{seed}") in scores]
        if control in scores:
            others = [scores[control]]
        if others:
            beside = control if control in scores else f"random-{place}, mean of {len(others)}"
            differs = scores[name].more_than(others, "all five")
            kept = mean_kept_share(plans[name].masks)
            rows.append({"name": name, "beside": beside, "kept": kept, "more": told(differs, "+")})
    columns = [["searched", "name", ""], ["beside", "beside", ""], ["kept", "kept", ".3f"]]
    return {"columns": [*columns, ["more of all five, 95 %", "more", ""]], "rows": rows}
