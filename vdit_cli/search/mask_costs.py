"""What each candidate mask costs a layer: its kept share, or its seconds on a machine. No torch, no GPU.

A plan has one order of frames, in which the global frames of nested masks are views; a mask outside the nest gathers
its tokens and puts them back, which takes as long for one mask as for another: all of q, k, v and the output. So a
plan costs the sum of its masks, and one `gather` for each layer outside its nest (`tiles.plan.largest_nest`, which
leaves the fewest layers out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from vdit_cli.attention.costs import GATHER, CostTable, Row
from vdit_cli.errors import EvditError
from vdit_cli.search.knapsack import Cost
from vdit_cli.tiles.grid import VideoGrid
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


@dataclass(frozen=True)
class Call:
    """One attention call of a layer: what its seconds are looked up by. `dtype` is as in "bfloat16"."""

    grid: VideoGrid
    heads: int
    head_dim: int
    batch: int
    dtype: str
    needs_grad: bool = False

    def __str__(self) -> str:
        """As in "batch 1 of 8 frames of 3600 tokens, 24 heads x 96, bfloat16"."""
        text = f" and {self.grid.text_tokens} of text" if self.grid.text_tokens else ""
        tokens = f"{self.grid.frames} frames of {self.grid.frame_tokens} tokens{text}"
        backward = " with backward" if self.needs_grad else ""
        return f"batch {self.batch} of {tokens}, {self.heads} heads x {self.head_dim}, {self.dtype}{backward}"

    def measuring(self, masks: Sequence[TileMask]) -> str:
        """The command that measures these masks."""
        grid = self.grid
        sizes = {"latent-frames": grid.frames, "frame-tokens": grid.frame_tokens, "text": grid.text_tokens}
        sizes |= {"heads": self.heads, "head-dim": self.head_dim, "batch": self.batch}
        names = ",".join(dict.fromkeys(mask.name for mask in masks if not mask.is_dense))
        flags = " ".join(f"--{flag} {value}" for flag, value in sizes.items()) + f" --dtype {self.dtype}"
        return f"evdit bench attention {flags}{' --backward' * self.needs_grad}{f' --masks {names}' if names else ''}"


def measured(
    masks: Sequence[TileMask],
    table: CostTable,
    call: Call,
    layers: Fraction = Fraction(1),
    where: str = "--costs",
) -> MaskCosts:
    """Seconds of each mask in `call` by its fastest kernel in the table, tokens in the mask's own order.

    `layers` is how many layers of `call` one layer stands for. Raises EvditError for a table without such a call, and,
    with the command that measures it, for a mask without a time and for masks that do not nest where the table does
    not tell what gathering takes.
    """
    times = [_seconds(mask, table, call) for mask in masks]
    gather = _seconds(TileMask.dense(call.grid.frames), table, call, is_gather=True)
    missing = [mask for mask, seconds in zip(masks, times, strict=True) if seconds is None]
    if missing:
        shapes = {str(_call_of(row)) for row in table.rows}
        known = f"the table has {'; '.join(sorted(shapes)) or 'no times'}"
        told = known if len(missing) == len(masks) else f"no time of {', '.join(mask.name for mask in missing)}"
        raise EvditError(
            f"the times of {table.machine.device} do not tell what {call} takes: {told}",
            where=where,
            next_steps=[call.measuring(masks)],
        )
    if gather is None and len(chains := list(largest_chains(masks))) > 1:
        outside = [mask for mask in masks if not mask.is_dense and mask not in max(chains, key=len)]
        raise EvditError(
            "one order of frames can't serve all masks, and the times do not tell what putting tokens in order takes: "
            f"not nested are {', '.join(mask.name for mask in outside)}",
            where=where,
            next_steps=[call.measuring(masks), "masks that nest"],
        )
    costs = tuple(Fraction(seconds) * layers for seconds in times if seconds is not None)
    return MaskCosts(tuple(masks), costs, Fraction(gather or 0) * layers, "seconds")


def has_times(table: CostTable, call: Call) -> bool:
    """Whether the table has a time of full attention in `call`, which is measured beside any mask."""
    return _seconds(TileMask.dense(call.grid.frames), table, call) is not None


def _seconds(mask: TileMask, table: CostTable, call: Call, is_gather: bool = False) -> float | None:
    """The fastest time in the table of a mask with as many global frames: in its own order it is the same work."""
    wanted = _work(call, mask)
    rows = ((row, seconds) for row, seconds in table.rows.items() if (row.kernel == GATHER) is is_gather)
    return min((seconds for row, seconds in rows if _work(_call_of(row), row.mask) == wanted), default=None)


def _call_of(row: Row) -> Call:
    return Call(row.grid, row.heads, row.head_dim, row.batch, row.dtype, row.needs_grad)


def _work(call: Call, mask: TileMask) -> tuple[object, ...]:
    """What decides the time of a mask in its own order of frames: `tiles.passes` looks at no more of mask and grid."""
    is_global = mask.frames if mask.is_dense else len(mask.global_frames)
    return replace(call, grid=VideoGrid(call.grid.frames, 1, call.grid.frame_tokens, call.grid.text_tokens)), is_global


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
