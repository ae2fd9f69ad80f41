"""What `--masks` means for an opened model: a plan that fits it, bound to kernels before any weight is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vdit_cli.attention.bind import KERNELS, Attend, Times
from vdit_cli.attention.costs import CostTable, Machine
from vdit_cli.attention.kernel_times import KnownOrMeasured
from vdit_cli.backbones.base import Backbone, own_plan
from vdit_cli.errors import FALLBACK, USAGE, EvditError, unknown_name
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

AUTO, DENSE = "auto", "none"


def find_plan(masks: str, backbone: Backbone, spec: SampleSpec, allow_other_weights: bool) -> MaskPlan:
    """The plan that `masks` names: a mask for all layers, a plan file, a run folder with one.

    "auto" is the plan that lies with the weights, full attention where none does; "none" is full attention. Raises
    EvditError for a mask that does not exist at this length and for a plan of another architecture, grid or weights.
    """
    grid = backbone.grid(spec.video_frames, spec.height, spec.width)
    try:
        if masks == AUTO:
            plan = own_plan(backbone)
        else:
            plan = MaskPlan.read(masks) if masks != DENSE and Path(masks).exists() else None
        if plan is not None:
            plan.check_fits(backbone.name, backbone.architecture, grid)
    except EvditError as error:
        if error.exit_code == USAGE:  # damaged weights, which "auto" asks for their plan, are so under any mask
            error.next_steps = (*error.next_steps, f"--masks {DENSE}")
        raise
    if plan is None:
        mask = TileMask.dense(grid.frames) if masks in (AUTO, DENSE) else _mask(masks, grid.frames)
        return MaskPlan.uniform(backbone.name, grid, backbone.architecture, mask)
    if plan.searched_on is not None and not allow_other_weights:
        plan.check_weights(backbone.weights_digest, backbone.lineage)
    return plan


def _mask(name: str, frames: int) -> TileMask:
    """The mask of that name. Raises EvditError for a name of no mask and no file."""
    if ":" not in name:
        few = max(1, frames // 4)
        raise EvditError(
            f"{name} is no mask plan: there is no such file or folder, and a mask's name is k:F-k",
            where=f"--masks {name}",
            next_steps=[f"--masks {few}:{frames - few}", "--masks none"],
        )
    return TileMask.parse(name, frames, where=f"--masks {name}")


def check_kernel(kernel: str) -> None:
    """Raise EvditError (exit 2) for a kernel that is in no table."""
    if kernel not in ("auto", *KERNELS):
        raise unknown_name("kernel", kernel, ("auto", *KERNELS), where=f"--kernel {kernel}")


def fallbacks(attends: Sequence[Attend], kernel: str) -> list[str]:
    """Where another kernel runs than the one asked for, in words, one entry a reason; "auto" asks for none."""
    if kernel == "auto":
        return []
    told = Counter(
        f"kernel {kernel} could not take mask {attend.mask.name} ({dict(attend.refused).get(kernel, 'refused')}): "
        f"{attend.kernel} runs instead"
        for attend in attends
        if attend.kernel != kernel
    )
    return [f"{text}, in {layers} layer{'' if layers == 1 else 's'}" for text, layers in told.items()]


def times_here(backbone: Backbone, kernel: str, progress: Progress) -> Times | None:
    """What was or will be measured on this machine, for "auto" to choose by; None where a kernel is asked for."""
    if kernel != "auto":
        return None
    return KnownOrMeasured(CostTable.read(Machine.of(backbone.device), progress.say), progress.say)


def by_times(attends: Sequence[Attend]) -> list[str]:
    """The kernels that were chosen by their times, in words, one entry a mask."""
    chosen = {attend.mask: attend for attend in attends if attend.times}
    return [
        f"{mask.name} {attend.kernel} ({', '.join(f'{name} {1e3 * seconds:.3g} ms' for name, seconds in attend.times)})"
        for mask, attend in chosen.items()
    ]


def slower_than_dense(attends: Sequence[Attend]) -> list[str]:
    """The masks that were measured slower than full attention, in words, one entry a mask."""
    ratios = {attend.mask.name: attend.dense_is_faster for attend in attends if attend.dense_is_faster is not None}
    return [
        f"mask {name} was measured to take {ratio:.2f} times as long as full attention here (--masks none)"
        for name, ratio in ratios.items()
    ]


def bind_plan(
    backbone: Backbone,
    plan: MaskPlan,
    network_batch: int,
    kernel: str,
    strict: bool,
    progress: Progress,
    costs: Times | None = None,
) -> tuple[tuple[Attend, ...], list[str]]:
    """The plan bound on the backbone for that batch, and the fallbacks, which are also said on stderr.

    A mask is kept where `costs` say that full attention would be faster: that, too, is said, as are the times by which
    kernels were chosen. Raises EvditError (exit
    6) for a fallback where `strict`.
    """
    attends = backbone.apply_plan(plan, network_batch, kernel, costs=costs)
    told = fallbacks(attends, kernel)
    if told and strict:
        raise EvditError(
            f"--strict: {told[0]}", where=f"--kernel {kernel}", next_steps=["--kernel auto"], exit_code=FALLBACK
        )
    if chosen := by_times(attends):
        progress.say(f"kernels by their times: {'; '.join(chosen)}")
    for line in (*told, *slower_than_dense(attends)):
        progress.say(f"warning: {line}")
    return attends, told
