"""What each candidate mask costs a layer: its kept share, or its seconds on a machine. No torch, no GPU.

A plan has one order of frames, in which the global frames of nested masks are views; a mask outside the nest gathers
its tokens and puts them back, which takes as long for one mask as for another: all of q, k, v and the output. So a
plan costs the sum of its masks, and one `gather` for each layer outside its nest (`tiles.plan.largest_nest`, which
leaves the fewest layers out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vdit_cli.search.knapsack import Cost
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import largest_nest


@dataclass(frozen=True)
class MaskCosts:
    """The cost of one layer under each of `masks`, and what gathering adds where a mask is outside a plan's nest.

    `unit` is "kept share" or "seconds".
    """

    masks: tuple[TileMask, ...]
    costs: tuple[Cost, ...]
    gather: Cost = 0.0
    unit: str = "kept share"

    def of_plan(self, plan_L: Sequence[TileMask]) -> float:
        """The cost of a plan's masks, one a layer, in the plan's own order of frames."""
        nest = largest_nest(plan_L)
        of_mask = dict(zip(self.masks, self.in_nest(nest), strict=True))
        return float(sum((Fraction(of_mask[mask]) for mask in plan_L), Fraction(0)))

    def speedup(self, plan_L: Sequence[TileMask]) -> float:
        """How many times more the full mask costs in every layer."""
        return self.of_plan((self.masks[0],) * len(plan_L)) / self.of_plan(plan_L)

    def in_nest(self, nest: Sequence[TileMask]) -> tuple[Cost, ...]:
        """The cost of each mask where the order of frames is made for `nest`."""
        return tuple(
            cost if mask.is_dense or mask in nest else Fraction(cost) + Fraction(self.gather)
            for mask, cost in zip(self.masks, self.costs, strict=True)
        )

    def nests(self) -> list[tuple[TileMask, ...]]:
        """The nests that an order of frames may be made for: one with all masks where gathering costs nothing."""
        return list(largest_chains(self.masks)) if self.gather else [self.masks]


def kept_shares(masks: Sequence[TileMask]) -> MaskCosts:
    """Costs without a machine: the exact share of tiles that each mask keeps; gathering is free."""
    return MaskCosts(tuple(masks), tuple(Fraction(mask.kept_tiles, mask.frames**2) for mask in masks))


def largest_chains(masks: Sequence[TileMask]) -> Iterator[tuple[TileMask, ...]]:
    """Every nest of the masks, sparsest first, that no further one of them fits into; the full ones are left out."""
    sparse = [mask for mask in masks if not mask.is_dense]

    def above(low: TileMask | None) -> list[TileMask]:
        """The masks that come next after `low` in some nest: those that hold it, and hold no other such one."""
        held = set(low.global_frames) if low else set()
        higher = [mask for mask in sparse if held < set(mask.global_frames)]
        sets = [set(mask.global_frames) for mask in higher]
        return [mask for mask in higher if not any(other < set(mask.global_frames) for other in sets)]

    def grown(chain: tuple[TileMask, ...]) -> Iterator[tuple[TileMask, ...]]:
        """The largest nests that begin with `chain`."""
        following = above(chain[-1] if chain else None)
        if not following:
            yield chain
        for mask in following:
            yield from grown((*chain, mask))

    yield from grown(())
