"""The multiple-choice knapsack, exact: of all ways to give each layer one mask, those that no other way beats.

Layer after layer, every point kept so far is extended by every mask, and the points that another one equals or beats in
both cost and loss fall out (Nemhauser and Ullmann 1969). Nothing is rounded and nothing thinned: costs are added as
whole numbers of a unit that divides them all, so that two plans of one histogram cost the same whatever their order;
losses are added in float64, layer by layer, and such sums never turn the order of two losses round.

With K points kept this takes O(L M K log(M K)) time and O(L K) memory. K is at most the number of different costs:
for kept tiles L F F, for measured times that all layers share C(L + M - 1, M - 1), and M ** L where layers differ. On
random tables it stays small: 42 layers of 8 masks keep 2,436 points with shared costs and 3,619 with a layer's own, in
0.04 s on one core; a single target needs a part of them (`Within`). Letters: F latent frames, L layers, M masks, K
points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from vdit_cli.errors import FAILED, EvditError

MOST_POINTS = 1_000_000
"""Points of a front, beyond which the search says that it gives up: 13 bytes each and layer."""
LARGEST = 2**900
"""Units of cost in 1, from which on sums may be beyond float64: then no point is left out early."""
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


@dataclass(frozen=True)
class Within:
    """A limit on the sum of costs, under which losses are to be least, or on the sum of losses (`of` "loss")."""

    of: Literal["cost", "loss"]
    limit: float

    def hopeful(
        self,
        costs_LM: np.ndarray,
        losses_LM: np.ndarray | Sequence[Sequence[float]],
        allowed_L: Sequence[Sequence[int]],
    ) -> Callable[[int, np.ndarray, np.ndarray], np.ndarray] | None:
        """Which points (K,) after a layer, by their sums so far, may still lead to the best one; None if none can.

        A point's bound is that of Lagrange: sums so far and, for each layer to come, the least of loss + rate * cost.
        Above the loss of a plan that is within the limit, the point leads to nothing better. Rounding is allowed for.
        """
        is_barred = np.ones(costs_LM.shape, bool)
        for layer, masks in enumerate(allowed_L):
            is_barred[layer, list(masks)] = False
        pairs = [np.asarray(losses_LM, np.float64), costs_LM]
        gain_LM, spent_LM = (
            np.where(is_barred, np.inf, each) for each in (pairs if self.of == "cost" else pairs[::-1])
        )
        rate, best = _rate(gain_LM, spent_LM, self.limit)
        if rate is None:
            return None
        ahead_L, least_L = (gain_LM + rate * spent_LM).min(axis=1), spent_LM.min(axis=1)
        room = ROUNDING * (best + rate * self.limit)

        def is_hopeful(layer: int, cost_K: np.ndarray, loss_K: np.ndarray) -> np.ndarray:
            """Whether each point can end within the limit, and as well as the plan that is known."""
            gain_K, spent_K = (loss_K, cost_K) if self.of == "cost" else (cost_K, loss_K)
            fits = spent_K + least_L[layer + 1 :].sum() <= self.limit * (1 + ROUNDING)
            return fits & (gain_K + rate * (spent_K - self.limit) + ahead_L[layer + 1 :].sum() <= best + room)

        return is_hopeful


ROUNDING = 1e-9
"""By how much of itself a sum in float64 may be off: far more than it is."""


def _rate(gain_LM: np.ndarray, spent_LM: np.ndarray, limit: float) -> tuple[float | None, float]:
    """The rate at which taking the least of gain + rate * spent in each layer just keeps the limit, and that gain.

    None where even the least that can be spent is above the limit.
    """
    layers = np.arange(len(gain_LM))

    def taken(rate: float) -> tuple[float, float]:
        """Sums of gain and spent."""
        masks = (gain_LM + rate * spent_LM).argmin(axis=1)
        return float(gain_LM[layers, masks].sum()), float(spent_LM[layers, masks].sum())

    low, high = 0.0, 1.0
    while taken(high)[1] > limit:
        low, high = high, high * 4
        if high > 1e30:
            return None, math.inf
    best = taken(high)[0]
    for _ in range(50):
        middle = (low + high) / 2
        gain, spent = taken(middle)
        if spent <= limit:
            high, best = middle, min(best, gain)
        else:
            low = middle
    return high, best


def pareto_front(
    costs_LM: Sequence[Sequence[Cost]],
    losses_LM: np.ndarray | Sequence[Sequence[float]],
    allowed_L: Sequence[Sequence[int]] | None = None,
    within: Within | None = None,
    most_points: int = MOST_POINTS,
) -> Front:
    """The whole front of (sum of costs, sum of losses) over one mask a layer, of those in `allowed_L` where given.

    With `within` only that part of it that can hold the best point within a limit, which takes far less time. Of equal
    points the one whose later layers take later masks stays, which are the sparser ones. Raises EvditError (exit 1)
    where more than `most_points` points would have to be kept: it never leaves one out.
    """
    whole_LM, units = whole_numbers(costs_LM)
    allowed = allowed_L or [range(len(row)) for row in costs_LM]
    hopeful = None
    if within and units < LARGEST:
        hopeful = within.hopeful(whole_LM.astype(float) / units, losses_LM, allowed)
    cost_K: np.ndarray = np.zeros(1, whole_LM.dtype)
    loss_K = np.zeros(1)
    steps = []
    for layer, masks in enumerate(allowed):
        # The last mask first: the sorts below keep the order of equal points, and of those the first one stays.
        taken = np.sort(np.array(masks, np.int16))[::-1]
        cost_N = (whole_LM[layer][taken][:, None] + cost_K).ravel()
        loss_N = (np.asarray(losses_LM[layer], np.float64)[taken][:, None] + loss_K).ravel()
        places = np.arange(len(cost_N))
        if hopeful:
            places = places[hopeful(layer, cost_N.astype(float) / units, loss_N)]
        kept = places[undominated(cost_N[places], loss_N[places])]
        if len(kept) > most_points:
            raise EvditError(
                f"after {layer + 1} of {len(costs_LM)} layers {len(kept)} choices are left that none beats: "
                f"an exact choice is made among at most {most_points}",
                where="--masks",
                next_steps=["fewer candidate masks", "--r 0.1  (takes each layer by itself)"],
                exit_code=FAILED,
            )
        steps.append(((kept % len(cost_K)).astype(np.int32), taken[kept // len(cost_K)]))
        cost_K, loss_K = cost_N[kept], loss_N[kept]
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
