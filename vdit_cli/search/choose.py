"""One mask a layer, chosen from a table of losses: by a threshold, by a budget, or the same everywhere. No torch.

`loss_LM` is the mean loss of a layer under a mask (`SensitivityTable.mean`), with the masks of the table from the full
one to the sparsest. The loss of a plan is the sum over its layers. Letters: L layers, M masks, K points of a front.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vdit_cli.errors import EvditError, nearest
from vdit_cli.search.knapsack import Front, Within, pareto_front, undominated
from vdit_cli.search.mask_costs import MaskCosts
from vdit_cli.tiles.mask import TileMask

Masks = tuple[TileMask, ...]
"""One mask a layer."""
Fixed = Mapping[int, TileMask]
"""Layers whose mask is given, by their number."""
SLACK = 1 + 1e-12
"""A target is met by what misses it by rounding alone."""


def by_threshold(loss_LM: np.ndarray, masks: Sequence[TileMask], r: float) -> Masks:
    """For each layer the sparsest mask with a loss below `r`, else the full one.

    Raises EvditError for an r that is negative, NaN or infinite. Source: Algorithm 1 of arXiv 2502.06155.
    """
    check_number(r, "--r", 0)
    chosen = []
    for loss_M in loss_LM:
        for mask, loss in zip(reversed(masks), reversed(loss_M), strict=True):
            if loss < r:
                chosen.append(mask)
                break
        else:
            chosen.append(masks[0])
    return tuple(chosen)


def uniform(mask: TileMask, layers: int) -> Masks:
    """The same mask in each layer."""
    return (mask,) * layers


def shuffled(masks_L: Masks, seed: int) -> Masks:
    """The same masks in a random order of layers: a control that keeps histogram and cost."""
    return tuple(random.Random(seed).sample(masks_L, len(masks_L)))


def with_fixed(masks_L: Masks, fixed: Fixed) -> Masks:
    """The masks with those of the fixed layers put in."""
    return tuple(fixed.get(layer, mask) for layer, mask in enumerate(masks_L))


def parse_fixed(text: str, layers: int, masks: Sequence[TileMask], where: str = "--fix") -> dict[int, TileMask]:
    """The layers and masks in a text such as "0=dense,7=4:4"; "dense" is the full mask, an empty text fixes none.

    Raises EvditError, with what may be, for a layer that is not there or named twice and a mask that is no candidate.
    """
    named = {mask.name: mask for mask in reversed(masks)} | {"dense": masks[0]}
    fixed: dict[int, TileMask] = {}
    items = [item.strip() for item in text.split(",") if item.strip()]
    for item in items or ([text] if text else []):
        found = re.fullmatch(r"(\d{1,9})\s*=\s*(\S+)", item, re.ASCII)
        if found is None:
            raise EvditError(
                f"{item!r} fixes no layer: it is LAYER=MASK",
                where=where,
                next_steps=[f"{where} 0=dense,1={masks[-1].name}"],
            )
        layer, name = int(found[1]), found[2]
        if layer >= layers:
            raise EvditError(f"there is no layer {layer}: layers are 0 to {layers - 1}", where=f"{where} {item}")
        if layer in fixed:
            raise EvditError(f"layer {layer} is fixed twice: a layer has one mask", where=f"{where} {item}")
        if name not in named:
            raise EvditError(
                f"{name!r} is no candidate: layers choose among {', '.join(named)}",
                where=f"{where} {item}",
                next_steps=[f"{where} {layer}={each}" for each in nearest(name, named)],
            )
        fixed[layer] = named[name]
    return fixed


@dataclass(frozen=True)
class Choice:
    """A plan's masks with what the tables foretell: its loss, its cost and how many times the full mask costs more.

    `met` is False where this is the best that can be and still misses the target.
    """

    masks: Masks
    loss: float
    cost: float
    speedup: float
    met: bool = True


def judged(masks_L: Masks, loss_LM: np.ndarray, costs: MaskCosts, met: bool = True) -> Choice:
    """What the tables foretell of any plan of candidate masks, however it was chosen."""
    loss = 0.0
    for layer, mask in enumerate(masks_L):  # layer by layer, as the knapsack adds
        loss += float(loss_LM[layer][costs.masks.index(mask)])
    return Choice(masks_L, loss, costs.of_plan(masks_L), costs.speedup(masks_L), met)


@dataclass(frozen=True)
class Target:
    """What a budget asks for: a plan's `loss` or `cost` of at most, or a `speedup` of at least `value`.

    Raises EvditError for a value that is none.
    """

    kind: Literal["loss", "cost", "speedup"]
    value: float

    def __post_init__(self) -> None:
        """Refuse NaN, infinities and negative numbers, and a cost or speed-up of 0."""
        flags = {"loss": "--max-loss", "cost": "--latency", "speedup": "--target-speedup"}
        check_number(self.value, flags[self.kind], 0, is_above=self.kind != "loss")


@dataclass(frozen=True, eq=False)
class PlanFront:
    """The K plans that no other beats, from the cheapest to that of least loss: float64 (K,) `costs` and `losses`."""

    costs: np.ndarray
    losses: np.ndarray
    of_layers: tuple[int, Masks]
    """The number of layers, and the candidate masks."""
    places: tuple[tuple[Front, int], ...] = field(repr=False)
    """Each point's front, one for each nest of masks, and its place there."""

    def __len__(self) -> int:
        """Plans, K."""
        return len(self.costs)

    def masks(self, point: int) -> Masks:
        """The masks of the plan at `point`."""
        front, place = self.places[point]
        return tuple(self.of_layers[1][mask] for mask in front.chosen(place))


def plan_front(
    loss_LM: np.ndarray, costs: MaskCosts, fixed: Fixed | None = None, within: Within | None = None
) -> PlanFront:
    """All plans that no other beats in cost and loss, exactly; fixed layers keep their mask.

    `within` leaves out those that can't be the best within a limit.

    A front is made for each nest of masks that an order of frames can serve, and the best of all stay: since gathering
    costs every mask the same, the order for the most layers, which a plan has, is also its cheapest. Raises EvditError
    where a front grows beyond `knapsack.MOST_POINTS`.
    """
    everything = range(len(costs.masks))
    allowed = [
        [costs.masks.index(fixed[layer])] if fixed and layer in fixed else everything for layer in range(len(loss_LM))
    ]
    fronts = [pareto_front([costs.in_nest(nest)] * len(loss_LM), loss_LM, allowed, within) for nest in costs.nests()]
    places = [(front, place) for front in fronts for place in range(len(front))]
    cost_N, loss_N = (np.concatenate(each) for each in zip(*((f.costs, f.losses) for f in fronts), strict=True))
    kept = undominated(cost_N, loss_N)
    return PlanFront(cost_N[kept], loss_N[kept], (len(loss_LM), costs.masks), tuple(places[i] for i in kept))


def by_budget(
    loss_LM: np.ndarray, costs: MaskCosts, target: Target, fixed: Fixed | None = None, front: PlanFront | None = None
) -> Choice:
    """The plan of least loss within a cost or speed-up, or the cheapest within a loss; of equal ones the sparser.

    Where no plan meets the target it is the one that comes nearest, and its `met` is False. `front` is that of
    `plan_front` where it is known already.
    """
    if target.kind == "loss":
        within = Within("loss", target.value * SLACK)
    else:
        dense = costs.of_plan(uniform(costs.masks[0], len(loss_LM)))
        within = Within("cost", (target.value if target.kind == "cost" else dense / target.value) * SLACK)
    front = front or plan_front(loss_LM, costs, fixed, within)
    if within.of == "loss":
        fits = np.flatnonzero(front.losses <= within.limit)
        point = fits[0] if len(fits) else len(front) - 1
    else:
        fits = np.flatnonzero(front.costs <= within.limit)
        point = fits[-1] if len(fits) else 0
    return judged(front.masks(int(point)), loss_LM, costs, met=len(fits) > 0)


def check_number(value: float, where: str, least: float, is_above: bool = False) -> None:
    """Raises EvditError for a value that is NaN, infinite or below `least` (with `is_above`: or `least` itself)."""
    if not math.isfinite(value) or value < least or (is_above and value == least):
        rule = f"above {least}" if is_above else f"at least {least}"
        raise EvditError(f"{value} is no number to choose by: it must be finite and {rule}", where=where)
