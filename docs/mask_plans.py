"""Write the plans that a search is held against: uniform ones, those of five r, the same masks shuffled, budgets.

evdit search-masks --by output -o runs/masks
python docs/mask_plans.py runs/masks runs/plans

Each is a file NAME.json that `evdit generate --masks` takes, its name telling what it is:

    dense, uniform-4:4 ...     the same mask in all layers, every candidate
    r-1 ... r-5                Algorithm 1 at five r, from nearly dense to nearly the sparsest
    random-K-S                 the masks of r-K, given to the layers at random with seed S, 0 to 4
    budget-BY-K                the least summed score BY among plans that keep no more than r-K
    budget-BY-4:4 ...          the same at what a uniform mask keeps
    drawn-53-I, drawn-44-I     masks drawn layer by layer, kept share about .53 or .44; I of 0 to 29, no two alike
"""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from script import folder_at, run

from vdit_cli.errors import EvditError
from vdit_cli.search.choose import Choice, Masks, Target, by_budget, judged, shuffled
from vdit_cli.search.mask_costs import MaskCosts, kept_shares
from vdit_cli.search.pareto import AtThreshold, sweep
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.tiles.plan import MaskPlan

RULES = 5
"""Values of r."""
ASSIGNMENTS = 5
"""Random assignments of each histogram."""
SHARES = (0.53, 0.44)
"""Kept shares of the plans that are drawn at random."""
DRAWN = 30
NEAR = 0.015
"""How far a drawn plan's kept share may be from what is asked."""


def spread(found: Sequence[AtThreshold], count: int) -> list[AtThreshold]:
    """So many thresholds, their kept shares nearest to even steps between the densest and the sparsest plan."""
    shares = [mean_kept_share(each.choice.masks) for each in found]
    steps = [shares[0] + (shares[-1] - shares[0]) * (k + 1) / (count + 1) for k in range(count)]
    places = [min(range(len(found)), key=lambda place: abs(shares[place] - share)) for share in steps]
    return [found[place] for place in places]


def drawn(costs: MaskCosts, layers: int, share: float, count: int, seed: int = 0) -> list[Masks]:
    """So many different plans of masks drawn evenly from the candidates, of those that keep about `share` of the tiles.

    Raises EvditError where a hundred thousand draws do not bring as many.
    """
    source, found = random.Random(seed), dict[Masks, None]()
    for _ in range(100_000):
        masks = tuple(source.choices(costs.masks, k=layers))
        if abs(mean_kept_share(masks) - share) <= NEAR:
            found[masks] = None
        if len(found) == count:
            return list(found)
    names = ", ".join(mask.name for mask in costs.masks)
    raise EvditError(f"{len(found)} plans, not {count}, of {layers} layers with {names} keep {share:g} of the tiles")


def plans(table: SensitivityTable) -> Iterator[tuple[str, Choice, dict[str, object]]]:
    """Each plan's name, what the score `attention` foretells of it, and how it was made."""
    costs = kept_shares(table.masks)
    loss_LM, layers = table.mean("attention"), table.architecture.layers

    def of(masks: Masks) -> Choice:
        return judged(masks, loss_LM, costs)

    limits: dict[str, float] = {}
    for mask in table.masks:
        name = "dense" if mask.is_dense else f"uniform-{mask.name}"
        choice = of((mask,) * layers)
        yield name, choice, {"uniform": mask.name}
        if mask not in (table.masks[0], table.masks[-1]):  # at either end there is one plan, the uniform one
            limits[mask.name] = choice.cost
    for k, each in enumerate(spread(sweep(loss_LM, costs), RULES), 1):
        yield f"r-{k}", each.choice, {"r": each.r, "by": "attention"}
        for seed in range(ASSIGNMENTS):
            yield f"random-{k}-{seed}", of(shuffled(each.choice.masks, seed)), {"histogram_of": f"r-{k}", "seed": seed}
        limits[str(k)] = each.choice.cost
    for (at, limit), by in itertools.product(limits.items(), table.losses):
        choice = by_budget(table.mean(by), costs, Target("cost", limit))
        yield f"budget-{by}-{at}", of(choice.masks), {"by": by, "cost": limit}
    for share in SHARES:
        for place, masks in enumerate(drawn(costs, layers, share, DRAWN)):
            yield f"drawn-{share * 100:.0f}-{place}", of(masks), {"drawn_at": share, "place": place}


def main(arguments: Sequence[str]) -> None:
    """Read a search's table and write the plans into a folder. Raises EvditError."""
    if len(arguments) != 2:
        raise EvditError(
            f"the script takes the run of a search and a folder for the plans: {len(arguments)} words were given",
            next_steps=["python docs/mask_plans.py runs/masks runs/plans"],
        )
    table, out = SensitivityTable.read(folder_at(arguments[0])), Path(arguments[1])
    if out.is_dir() and any(out.iterdir()):
        raise EvditError(f"{out} holds files already: plans are written into a folder of their own", where=str(out))
    out.mkdir(parents=True, exist_ok=True)
    for name, choice, made_by in plans(table):
        told = {"loss": choice.loss, "kept_share": mean_kept_share(choice.masks)}
        MaskPlan(
            backbone=table.backbone,
            grid=table.grid,
            masks=choice.masks,
            searched_on=table.weights,
            made_by={"name": name, **made_by, "sensitivity": table.digest},
            predicted=told,
            architecture=table.architecture,
        ).write(out / f"{name}.json")
        sys.stdout.write(f"{name}: kept {told['kept_share']:.3f}, {', '.join(mask.name for mask in choice.masks)}\n")


if __name__ == "__main__":
    sys.exit(run(main))
