"""The front of a search: all plans that no other beats in cost and loss, and what a person holds against it. No torch.

Beside the front stand the uniform masks, the plans that a threshold gives at any r, and the plan that was chosen.
Letters: L layers, M masks, K plans of the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.errors import EvditError, quoted
from vdit_cli.search.choose import SLACK, Choice, Masks, PlanFront, by_threshold, judged, plan_front, uniform
from vdit_cli.search.mask_costs import MaskCosts
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.tiles.plan_json import PLAN_FILE

MOST_TOLD = 20_000
"""Plans of a front that JSON holds; of a larger one so many, evenly spread, and how many are left out."""


@dataclass(frozen=True)
class AtThreshold:
    """The plan of Algorithm 1 at `r`, the least r that gives it; it is the plan up to the next one's r."""

    r: float
    choice: Choice


@dataclass(frozen=True, eq=False)
class Pareto:
    """A table's front by the score `by` at `costs`, the plan of each uniform mask, those of every r, the chosen one."""

    table: SensitivityTable
    by: str
    costs: MaskCosts
    front: PlanFront
    uniforms: tuple[Choice, ...]
    sweep: tuple[AtThreshold, ...]
    chosen: Choice | None

    @property
    def dense_cost(self) -> float:
        """The cost of full attention in all layers."""
        return self.uniforms[0].cost

    def least_loss(self, cost: float) -> float | None:
        """The loss of the front's best plan that costs no more; None where every plan costs more."""
        place = int(np.searchsorted(self.front.costs, cost * SLACK, "right"))
        return float(self.front.losses[place - 1]) if place else None

    def content(self) -> dict[str, Any]:
        """All of it as plain JSON values; "layers" holds each layer's mask by its place in "masks"."""
        told = thinned(len(self.front), MOST_TOLD)
        return {
            "table": self.table.digest,
            "by": self.by,
            "costs": self.costs.unit,
            "masks": [{"mask": mask.name, "global_frames": list(mask.global_frames)} for mask in self.costs.masks],
            "plans": len(self.front),
            "left_out": len(self.front) - len(told),
            "front": [
                self._plan(self.front.masks(k), float(self.front.costs[k]), float(self.front.losses[k])) for k in told
            ],
            "uniform": [{"mask": each.masks[0].name, **self._choice(each)} for each in self.uniforms],
            "r_sweep": [{"r": each.r, **self._choice(each.choice)} for each in self.sweep],
            "chosen": None if self.chosen is None else self._choice(self.chosen),
        }

    def _choice(self, choice: Choice) -> dict[str, Any]:
        """A plan of a person's, with the least loss that its cost could buy."""
        return {**self._plan(choice.masks, choice.cost, choice.loss), "least_loss": self.least_loss(choice.cost)}

    def _plan(self, masks_L: Masks, cost: float, loss: float) -> dict[str, Any]:
        kept = mean_kept_share(masks_L)
        return {
            "cost": cost,
            "loss": loss,
            "kept_share": kept,
            "skipped_share": 1 - kept,
            "attention_speedup": self.dense_cost / cost,
            "layers": [self.costs.masks.index(mask) for mask in masks_L],
        }


def thinned(count: int, most: int) -> list[int]:
    """So many places of `count`, at most `most`, evenly spread with the first and the last among them."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def read_search(run: Path) -> tuple[SensitivityTable, MaskPlan | None]:
    """The table of a run of `evdit search-masks`, or of a file, and the plan beside it where there is one.

    Raises EvditError where one of them is damaged or the plan was chosen from another table.
    """
    table = SensitivityTable.read(run)
    file = run / PLAN_FILE
    if not run.is_dir() or not file.exists():
        return table, None
    plan = MaskPlan.read(file)
    if plan.made_by.get("sensitivity") != table.digest:
        raise EvditError(
            f"the plan was not chosen from the table beside it, whose digest is {table.digest[:12]}",
            where=str(file),
            next_steps=[f"the table alone: {table.origin}", f"evdit search-masks --sensitivity {quoted(run)}"],
        )
    return table, plan


def pareto(table: SensitivityTable, by: str, costs: MaskCosts, plan: MaskPlan | None = None) -> Pareto:
    """The exact front of a table by one score, at the costs of its masks, and where `plan` and the others stand.

    Raises EvditError for a score that was not measured, a plan of other masks and a front that grows too large.
    """
    loss_LM = table.mean(by)
    layers = len(loss_LM)
    return Pareto(
        table,
        by,
        costs,
        plan_front(loss_LM, costs),
        tuple(judged(uniform(mask, layers), loss_LM, costs) for mask in costs.masks),
        tuple(sweep(loss_LM, costs)),
        None if plan is None else judged(candidates_only(plan, costs), loss_LM, costs),
    )


def candidates_only(plan: MaskPlan, costs: MaskCosts) -> Masks:
    """The plan's masks. Raises EvditError for one that is no candidate, as after an edit: its loss is not known."""
    for layer, mask in enumerate(plan.masks):
        if mask not in costs.masks:
            raise EvditError(
                f"{mask.name} was no candidate: what it changes was not measured",
                where=f"{plan.origin or 'the plan'} layer {layer}",
                next_steps=["the plan as the search wrote it"],
            )
    return plan.masks


def sweep(loss_LM: np.ndarray, costs: MaskCosts) -> Sequence[AtThreshold]:
    """Every plan that a threshold gives, from r = 0 on: it changes only where r comes to lie above a loss."""
    found: list[AtThreshold] = []
    for r in (0.0, *np.nextafter(np.unique(loss_LM), np.inf).tolist()):
        masks = by_threshold(loss_LM, costs.masks, r)
        if not found or masks != found[-1].choice.masks:
            found.append(AtThreshold(r, judged(masks, loss_LM, costs)))
    return found
