"""The first steps of a trajectory under full attention, the others under a plan: `generate --dense-steps`.

The noisiest steps lay a video out, so masks may cost least in the later ones [ours]: a control for plans that mask all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from vdit_cli.attention.bind import Attend
from vdit_cli.backbones.base import Backbone
from vdit_cli.errors import EvditError
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

Bound = tuple[Attend, ...]
"""Each layer's attention."""


def check_dense_steps(dense_steps: int, steps: int, plan: MaskPlan, masks: str) -> None:
    """Raise EvditError (exit 2) for more dense steps than there are, and for some where `masks` names no mask."""
    where = f"--dense-steps {dense_steps}"
    if dense_steps > steps:
        raise EvditError(
            f"{dense_steps} dense steps are more than the {steps} of this video: it must be 0 to {steps}",
            where=where,
            next_steps=[f"--dense-steps {steps}"],
        )
    if dense_steps and plan.is_dense:
        frames = plan.grid.frames
        few = max(1, frames // 4)
        masked = [f"{where} --masks {few}:{frames - few}"] if frames > 1 else []
        raise EvditError(
            f"--masks {masks} is full attention here: all steps are dense without --dense-steps",
            where=where,
            next_steps=[*masked, "no --dense-steps"],
        )


def full_attention(plan: MaskPlan) -> MaskPlan:
    """Full attention in every layer of what `plan` is for."""
    return replace(plan, masks=(TileMask.dense(plan.grid.frames),) * len(plan.masks))


def parts_of(plan: MaskPlan, dense_steps: int, steps: int) -> list[MaskPlan]:
    """The plans that a trajectory runs under, in order: full attention, then `plan`, or one of them alone."""
    return [full_attention(plan)] * (dense_steps > 0) + [plan] * (dense_steps < steps)


def kept_share(plan_share: float, dense_steps: int, steps: int) -> float:
    """Share of tiles that a trajectory keeps, mean over layers and steps, where the plan keeps `plan_share`."""
    return (dense_steps + (steps - dense_steps) * plan_share) / steps


class Switched:
    """A `denoise` whose first `dense_steps` calls run under full attention and all later ones under the plan.

    `bind` puts a plan on the backbone. `dense` and `masked` are each layer's attention in those steps, () before
    the first of them.
    """

    def __init__(
        self, backbone: Backbone, plan: MaskPlan, bind: Callable[[MaskPlan], Bound], dense_steps: int, steps: int
    ) -> None:
        self.backbone, self.plan, self.bind = backbone, plan, bind
        self.dense_steps, self.steps, self.step = dense_steps, steps, 0
        self.dense: Bound = bind(full_attention(plan)) if dense_steps else ()
        self.masked: Bound = () if dense_steps else bind(plan)

    def __call__(self, x_BCFhw: Tensor, t_B: Tensor, text: Any) -> Tensor:
        """The backbone's prediction in the next step."""
        if self.step == self.dense_steps and not self.masked:
            self.masked = self.bind(self.plan)
        self.step += 1
        return self.backbone.denoise(x_BCFhw, t_B, text)
