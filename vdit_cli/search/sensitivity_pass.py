"""What each candidate mask does to each layer along the dense trajectory of one prompt and seed.

Letters: B rows of the network's batch (with guidance both branches), N tokens, H heads, D head width; S steps looked
at, L layers, M masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.attention.bind import Attend, Case, bind
from vdit_cli.backbones.base import Backbone
from vdit_cli.diffusion.guidance import combine
from vdit_cli.diffusion.prediction import x0_gain
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.reader import kept
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.sampling.taps import Shown, Taps
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask


class AttentionErrors:
    """Mean squared errors of each mask's attention output against the dense one, on the same q, k and v.

    `errors` and `powers` (the mean square of the dense output) fill up by (step, layer) as `see` is shown the sites;
    q, k and v are not kept.
    """

    def __init__(self, masks: Sequence[TileMask], grid: VideoGrid, kernel: str) -> None:
        self.masks = masks
        self.grid = grid
        self.kernel = kernel
        self.errors: dict[tuple[int, int], list[float]] = {}
        self.powers: dict[tuple[int, int], float] = {}
        self.bound: dict[TileMask, Attend] = {}

    def see(self, layer: int, step: int, shown: Shown) -> None:
        """Try every mask on one site. Raises EvditError (exit 1) where an error is not finite."""
        q_BNHD, k_BNHD, v_BNHD, dense_BNHD = shown
        found = []
        for mask in self.masks:
            if mask.is_dense:
                found.append(0.0)
                continue
            out_BNHD = self.attend(mask, q_BNHD)(q_BNHD, k_BNHD, v_BNHD)
            found.append(mean_square(out_BNHD.float() - dense_BNHD.float()))
        self.powers[step, layer] = mean_square(dense_BNHD.float())
        self.errors[step, layer] = checked(found, f"the attention outputs of layer {layer} in step {step}", q_BNHD)

    def attend(self, mask: TileMask, q_BNHD: Tensor) -> Attend:
        """The mask bound for such queries, once."""
        if mask not in self.bound:
            batch, _, heads, width = q_BNHD.shape
            case = Case(self.grid, heads, width, batch, q_BNHD.dtype, q_BNHD.device)
            self.bound[mask] = bind(mask, case, self.kernel)
        return self.bound[mask]


class OutputErrors:
    """A network's `denoise` that at chosen steps also runs it with each mask on each layer alone.

    `errors` by (step, layer) are mean squares of what that changes in the clean data which the guided output tells.
    """

    def __init__(self, backbone: Backbone, spec: SampleSpec, taps: Taps, attention: AttentionErrors) -> None:
        self.backbone = backbone
        self.spec = spec
        self.taps = taps
        self.attention = attention
        self.schedule = NoiseSchedule.from_config(backbone.scheduler_config)
        self.errors: dict[tuple[int, int], list[float]] = {}

    def __call__(self, x_BCFhw: Tensor, t_B: Tensor, text: Any) -> Tensor:
        """The dense output, as `Backbone.denoise`."""
        dense = self.backbone.denoise(x_BCFhw, t_B, text)
        step = self.taps.step
        if step not in self.taps.steps:
            return dense
        placed = {layer: site.attend for layer, site in self.taps.sites.items()}
        a, s = self.schedule.at(t_B.long(), x_BCFhw.float())
        gain = x0_gain(self.backbone.prediction, a, s)[:1]
        try:
            for layer, site in self.taps.sites.items():
                found = []
                for mask in self.attention.masks:
                    if mask.is_dense:
                        found.append(0.0)
                        continue
                    self.alone(site, self.attention.bound[mask])
                    masked = self.backbone.denoise(x_BCFhw, t_B, text)
                    found.append(mean_square(gain * (self.guided(masked) - self.guided(dense))))
                where = f"the model's outputs with masks on layer {layer} in step {step}"
                self.errors[step, layer] = checked(found, where, x_BCFhw)
        finally:
            for layer, attend in placed.items():
                self.taps.sites[layer].attend = attend
        return dense

    def alone(self, masked: nn.Module, attend: Attend) -> None:
        """Put `attend` on one site, and on the others what they had before the taps."""
        for layer, site in self.taps.sites.items():
            here: Any = attend if site is masked else self.taps.before[layer]
            site.attend = here

    def guided(self, output: Tensor) -> Tensor:
        """The output as the sampler takes it, in float32."""
        if not self.spec.guided:
            return output.float()
        cond, null = output.float().chunk(2)
        return combine(cond, null, self.spec.guidance)


def mean_square(x: Tensor) -> float:
    """The mean square, summed in float64."""
    return x.square().mean(dtype=torch.float64).item()


def checked(errors: list[float], what: str, like: Tensor) -> list[float]:
    """The errors. Raises EvditError (exit 1) where one is not finite."""
    if not np.isfinite(errors).all():
        number = str(like.dtype).removeprefix("torch.")
        raise EvditError(
            f"{what} are not finite in {number}",
            next_steps=["--dtype float32"] if like.dtype != torch.float32 else [],
            exit_code=FAILED,
        )
    return errors


@dataclass(frozen=True)
class PairNumbers:
    """What one prompt and seed gave: errors [S][L][M], `power` [S][L], `output` empty where it was not measured."""

    attention: list[list[list[float]]]
    power: list[list[float]]
    output: list[list[list[float]]]
    kernels: Mapping[str, str]
    """The kernel that computed each mask."""

    @staticmethod
    def file(folder: Path, place: int) -> Path:
        """Where the numbers of the pair with this place stand in the folder of a run."""
        return folder / "samples" / f"pair-{place:04d}.json"

    def write(self, path: Path) -> None:
        """Write the numbers."""
        path.parent.mkdir(exist_ok=True)
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path, shape_SLM: tuple[int, int, int], sees_output: bool) -> PairNumbers | None:
        """The numbers in a file; None where it is missing, damaged or of another shape, so that it is made again."""
        found = kept(PairNumbers, path, "pair's numbers")
        if found is None:
            return None
        try:
            arrays = [np.asarray(each, np.float64) for each in (found.attention, found.power, found.output)]
        except ValueError:  # lists of several lengths
            return None
        shapes = [shape_SLM, shape_SLM[:2], shape_SLM if sees_output else (0,)]
        fits = [array.shape for array in arrays] == shapes
        return found if fits and all(np.isfinite(array).all() and (array >= 0).all() for array in arrays) else None


def collected(
    attention: AttentionErrors, output: OutputErrors | None, steps: Sequence[int], layers: int
) -> PairNumbers:
    """The numbers of one trajectory, ordered by step and layer."""
    told = {} if output is None else output.errors
    return PairNumbers(
        attention=[[attention.errors[step, layer] for layer in range(layers)] for step in steps],
        power=[[attention.powers[step, layer] for layer in range(layers)] for step in steps],
        output=[[told[step, layer] for layer in range(layers)] for step in steps] if told else [],
        kernels={mask.name: attend.kernel for mask, attend in attention.bound.items()},
    )
