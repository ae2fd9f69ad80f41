"""The multiple-choice knapsack, exact: of all ways to give each layer one mask, those that no other way beats.

Layer after layer, every point kept so far is extended by every mask, and the points that another one equals or beats in
both cost and loss fall out (Nemhauser and Ullmann 1969). Nothing is rounded and nothing thinned: costs are added as
whole numbers of a unit that divides them all, so that two plans of one histogram cost the same whatever their order;
losses are added in float64, layer by layer, and such sums never turn the order of two losses round.

With K points kept this takes O(L M K log(M K)) time and O(L K) memory. K is at most the number of different costs:
for kept tiles L F F, for measured times that all layers share C(L + M - 1, M - 1), and M ** L where layers differ. On
random tables it stays small: 42 layers of 8 masks keep 2,436 points with shared costs and 3,619 with a layer's own, in
0.04 s on one core. Letters: F latent frames, L layers, M masks, K points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from vdit_cli.errors import FAILED, EvditError

MOST_POINTS = 1_000_000
"""Points of a front, beyond which the search says that it gives up: 13 bytes each and layer."""
Cost = float | Fraction
"""A cost as it is added: floats and fractions are both taken for exactly what they are."""


@dataclass(frozen=True, eq=False)
class Front:
    """The K choices that no other beats, from the cheapest to that of least loss: costs go up, losses go down.

    `costs` and `losses` are float64 (K,), sums over layers; `chosen` tells the mask of each layer of one point.
    """

    costs: np.ndarray
    losses: np.ndarray
    steps: tuple[tuple[np.ndarray, np.ndarray], ...] = field(repr=False)
    """A layer's (K_l,) points: the point of the layer before that each came from, and the mask it took."""

    def __len__(self) -> int:
        """Points, K."""
        return len(self.costs)

    def chosen(self, point: int) -> tuple[int, ...]:
        """The mask of each layer, by its place in the table, at the point with this place in the front."""
        masks = []
        for parents, taken in reversed(self.steps):
            masks.append(int(taken[point]))
            point = int(parents[point])
        return tuple(reversed(masks))


def pareto_front(
    costs_LM: Sequence[Sequence[Cost]],
    losses_LM: np.ndarray | Sequence[Sequence[float]],
    allowed_L: Sequence[Sequence[int]] | None = None,
    most_points: int = MOST_POINTS,
) -> Front:
    """The whole front of (sum of costs, sum of losses) over one mask a layer, of those in `allowed_L` where given.

    Of equal points the one whose later layers take later masks stays, which are the sparser ones. Raises EvditError
    (exit 1) where more than `most_points` points would have to be kept: it never leaves one out.
    """
    whole_LM, units = whole_numbers(costs_LM)
    allowed = allowed_L or [range(len(row)) for row in costs_LM]
    cost_K: np.ndarray = np.zeros(1, whole_LM.dtype)
    loss_K = np.zeros(1)
    steps = []
    for layer, masks in enumerate(allowed):
        # The last mask first: the sorts below keep the order of equal points, and of those the first one stays.
        taken = np.sort(np.array(masks, np.int16))[::-1]
        cost_MK = whole_LM[layer][taken][:, None] + cost_K
        loss_MK = np.asarray(losses_LM[layer], np.float64)[taken][:, None] + loss_K
        kept = undominated(cost_MK.ravel(), loss_MK.ravel())
        if len(kept) > most_points:
            raise EvditError(
                f"after {layer + 1} of {len(costs_LM)} layers {len(kept)} choices are left that none beats: "
                f"an exact choice is made among at most {most_points}",
                where="--masks",
                next_steps=["fewer candidate masks", "--r, which takes each layer by itself"],
                exit_code=FAILED,
            )
        steps.append(((kept % len(cost_K)).astype(np.int32), taken[kept // len(cost_K)]))
        cost_K, loss_K = cost_MK.ravel()[kept], loss_MK.ravel()[kept]
    costs = np.array([int(cost) / units for cost in cost_K])
    return Front(costs, loss_K, tuple(steps))


def undominated(cost_N: np.ndarray, loss_N: np.ndarray) -> np.ndarray:
    """Places of the points that no other equals or beats, from the cheapest on; of equal ones the first stays."""
    order = np.argsort(loss_N, kind="stable")
    order = order[np.argsort(cost_N[order], kind="stable")]
    sorted_N = loss_N[order]
    is_kept = np.ones(len(order), bool)
    is_kept[1:] = sorted_N[1:] < np.minimum.accumulate(sorted_N)[:-1]
    return order[is_kept]


def whole_numbers(costs_LM: Sequence[Sequence[Cost]]) -> tuple[np.ndarray, int]:
    """The costs as whole numbers (L, M) of a unit that divides them all, and how many such units make 1.

    They are int64 where a sum over all layers fits, and Python's own numbers, of any size, where it does not. Raises
    ValueError for a cost that is negative, NaN or infinite.
    """
    exact = [[_exact(cost) for cost in row] for row in costs_LM]
    units = math.lcm(*(cost.denominator for row in exact for cost in row))
    whole = [[int(cost * units) for cost in row] for row in exact]
    fits = sum(max(row) for row in whole) < 2**63
    return np.array(whole, np.int64 if fits else object), units


def _exact(cost: Cost) -> Fraction:
    if not 0 <= cost < math.inf:
        raise ValueError(f"{cost} is no cost: it must be 0 or more and finite")
    return Fraction(cost)
