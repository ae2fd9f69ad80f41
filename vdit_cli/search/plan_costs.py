"""The costs that a plan is chosen by: shares of tiles, or seconds of a step's attention out of a cost table. No torch.

The kernel that computes never depends on the table; the choice of a plan by time reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vdit_cli.attention.costs import CostTable
from vdit_cli.attention.presets import PRESETS
from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search.choose import Masks
from vdit_cli.search.mask_costs import Call, MaskCosts, has_times, kept_shares, measured
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.mask import TileMask

IN_SECONDS = ("latency", "costs_at", "step_rest")
"""Options that say nothing without a cost table."""
USUAL_DTYPE = "bfloat16"
"""What the models of the presets run in."""


@dataclass(frozen=True)
class PlanCosts:
    """What each mask costs a layer, and `told`, of what that is: of which call on which device.

    `table` is the digest of the cost table, `rest` the seconds of a step beside its attention; None where not known.
    """

    masks: MaskCosts
    told: str
    table: str | None = None
    rest: float | None = None

    @property
    def is_seconds(self) -> bool:
        """Whether costs are seconds, those of all attention calls of a step."""
        return self.table is not None

    def step_speedup(self, masks_L: Masks) -> float | None:
        """How many times longer a step with full attention takes; None where the rest of a step is not known."""
        if self.rest is None:
            return None
        dense = (self.masks.masks[0],) * len(masks_L)
        return (self.rest + self.masks.of_plan(dense)) / (self.rest + self.masks.of_plan(masks_L))


def call_of(table: SensitivityTable) -> Call:
    """The attention call of a layer on the trajectory that was measured, with both branches where it was guided.

    Raises EvditError for a table that does not say how it was measured.
    """
    guidance, dtype = table.settings.get("guidance"), table.settings.get("dtype")
    if not isinstance(guidance, int | float) or not isinstance(dtype, str):
        raise EvditError(
            "the sensitivity table does not say its guidance and dtype: the call that costs are of is not known",
            where=f"{table.origin or 'sensitivity table'} settings",
            next_steps=["no --costs"],
        )
    architecture = table.architecture
    return Call(table.grid, architecture.heads, architecture.head_dim, 1 if guidance == 1 else 2, dtype)


def read_costs(
    options: SearchMasksOptions, masks: Sequence[TileMask], layers: int, own_call: Callable[[], Call]
) -> PlanCosts:
    """The costs that the options ask for, of these candidates in a model of so many layers.

    Raises EvditError for an option that needs a cost table without one, a file that is none, a table without the call
    or a mask, and a model for `costs_at` that is unknown or has other frames.
    """
    if options.costs is None:
        for name in IN_SECONDS:
            if (value := getattr(options, name)) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise EvditError(
                    f"{flag} {value} is about seconds: without a cost table a mask costs its share of tiles",
                    where=options.where(name) or flag,
                    next_steps=["--costs RUN  (of evdit bench attention)", f"no {flag}"],
                )
        return PlanCosts(kept_shares(masks), "kept share")
    table = CostTable.load(Path(options.costs))
    where = options.where("costs") or f"--costs {options.costs}"
    call, times = own_call(), Fraction(1)
    if options.costs_at is not None:
        call, of_layers = call_at(options.costs_at, call, table, options.where("costs_at") or "--costs-at")
        times = Fraction(of_layers, layers)
    costs = measured(masks, table, call, times, where)
    each = f", {float(times):g} calls a layer" if options.costs_at is not None else ""
    told = f"seconds of {call}{each}, on {table.machine.device}"
    return PlanCosts(costs, told, table.digest, options.step_rest)


def call_at(name: str, own: Call, table: CostTable, where: str) -> tuple[Call, int]:
    """The attention call of the model `name` with the branches of `own`, and that model's layers.

    In bfloat16, or where the table has no such times, in the type of `own`. Raises EvditError for a name that is none
    and a model of other frames than `own`.
    """
    models = {known: preset.layers for known, preset in PRESETS.items() if preset.layers is not None}
    if name not in models:
        raise unknown_name("model", name, models, where, "--costs-at")
    preset, frames = PRESETS[name], own.grid.frames
    if preset.grid.frames != frames:
        raise EvditError(
            f"{name} has {preset.grid.frames} latent frames and the masks are over {frames}: they must be as many",
            where=where,
            next_steps=[*(f"--costs-at {each}" for each in models if PRESETS[each].grid.frames == frames)]
            or ["no --costs-at"],
        )
    call = replace(own, grid=preset.grid, heads=preset.heads, head_dim=preset.head_dim, dtype=USUAL_DTYPE)
    plain = replace(call, dtype=own.dtype)
    return (plain if has_times(table, plain) and not has_times(table, call) else call), models[name]
