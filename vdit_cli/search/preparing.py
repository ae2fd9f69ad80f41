"""Everything that decides a search's pass over the model, checked before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.run_dir import Request
from vdit_cli.backbones.base import Backbone
from vdit_cli.errors import EvditError
from vdit_cli.knobs import deciding
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.sampling.announcement import counted, prompt_doubts, say_options, summary
from vdit_cli.sampling.default_prompts import choose_prompts
from vdit_cli.sampling.memory import Placing, needed
from vdit_cli.sampling.plans import check_kernel
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.sampling.trajectory import (
    check_memory,
    checked_grid,
    open_model,
    read_seeds,
    read_shares,
    spec_of,
    steps_at,
    timesteps_of,
)
from vdit_cli.search.candidates import in_order, usual_masks
from vdit_cli.search.mask_costs import Call
from vdit_cli.search.plan_choice import read_rule
from vdit_cli.search.plan_costs import PlanCosts, read_costs
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask, family_masks
from vdit_cli.timing import Progress


@dataclass(frozen=True)
class Search:
    """A model opened for a search, weights not yet loaded, and all that will be measured on it."""

    options: SearchMasksOptions
    backbone: Backbone
    spec: SampleSpec
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    timesteps: tuple[float, ...]
    """Of the whole trajectory."""
    steps: tuple[int, ...]
    """Those looked at, counted from 0."""
    masks: tuple[TileMask, ...]
    """The candidates, from the full one to the sparsest."""
    grid: VideoGrid
    costs: PlanCosts
    """What the plan will be chosen by."""

    @property
    def pairs(self) -> tuple[tuple[str, int], ...]:
        """Every prompt with every seed, in the order of the pass."""
        return tuple((prompt, seed) for prompt in self.prompts for seed in self.seeds)

    @property
    def sees_output(self) -> bool:
        """Whether the model's final output is measured too, which costs a pass through it for each layer and mask."""
        return self.options.by == "output"

    @property
    def values(self) -> dict[str, Any]:
        """The options that decide the run, the model's own defaults filled in."""
        filled = {name: getattr(self.spec, name) for name in ("video_frames", "height", "width", "steps", "guidance")}
        dtype = str(self.backbone.dtype).removeprefix("torch.")
        filled |= {"scheduler": self.spec.scheduler, "dtype": dtype, "costs": self.costs.table}
        return {
            **deciding(self.options),
            **filled,
            "prompts": list(self.prompts),
            "weights": self.backbone.weights_digest,
        }

    def request(self) -> Request:
        """What decides the run."""
        lineage = (self.backbone.weights_digest, *self.backbone.lineage)
        origins = dict(self.options.origins)
        return Request("search-masks", self.options.model, self.values, origins=origins, lineage=lineage)


def prepare(options: SearchMasksOptions, progress: Progress) -> Search:
    """Open the model and check everything that was asked for against it; says what will be done.

    Raises EvditError with the exit code that fits.
    """
    shares = read_shares(options.at, options.where("at") or "search_masks.at")
    seeds = read_seeds(options.seeds, options.where("seeds") or "search_masks.seeds")
    check_kernel(options.kernel)
    backbone = open_model(options, progress)
    spec = spec_of(options, backbone)
    grid = checked_grid(backbone, spec)
    file = Path(options.prompts_file) if options.prompts_file else None
    prompts = choose_prompts(file, options.num_prompts, backbone)
    doubts = prompt_doubts(backbone, prompts, strict=False)
    timesteps = timesteps_of(backbone, spec)
    masks = read_candidates(options.masks, grid.frames, options.where("masks") or "search_masks.masks")
    if len(masks) < 2:
        raise EvditError(
            f"the only candidate is {masks[0].name}, full attention: there is nothing to choose",
            where=options.where("masks"),
            next_steps=["--masks auto", "--masks all"],
        )
    layers = backbone.architecture.layers
    costs = read_costs(options, masks, layers, lambda: call_on(backbone, spec, grid))
    read_rule(options, masks, layers, costs)  # refused now rather than after the pass
    steps = steps_at(shares, len(timesteps))
    search = Search(options, backbone, spec, prompts, seeds, timesteps, steps, masks, grid, costs)
    need = check_memory("search", backbone, spec, options.offload, partial(search_bytes, search))
    say_what_comes(search, need, progress)
    for line in doubts.values():
        progress.say(f"warning: {line}")
    return search


def call_on(backbone: Backbone, spec: SampleSpec, grid: VideoGrid) -> Call:
    """The attention call of a layer on the trajectory; with guidance both branches are one batch."""
    architecture = backbone.architecture
    dtype = str(backbone.dtype).removeprefix("torch.")
    return Call(grid, architecture.heads, architecture.head_dim, 2 if spec.guided else 1, dtype)


def read_candidates(text: str, frames: int, where: str) -> tuple[TileMask, ...]:
    """Masks from the full one to the sparsest: the usual ones for "auto", the family for "all", else those of names.

    Raises EvditError (exit 2) for other text.
    """
    if text.strip() == "auto":
        return usual_masks(frames)
    if text.strip() == "all":
        return in_order(family_masks(frames), frames)
    return in_order((TileMask.parse(part, frames, where) for part in text.split(",")), frames)


def search_bytes(search: Search, spec: SampleSpec, offload: str) -> int:
    """Bytes that text or denoising needs, whichever is more, with four copies of a site's output beside the latter.

    Nothing is decoded; beside the tensors of a step stand the masked output of one site and its difference.
    """
    need = needed(search.backbone, spec, Placing(offload, False, 1))
    tokens = search.backbone.grid(spec.video_frames, spec.height, spec.width).tokens
    architecture = search.backbone.architecture
    width = architecture.heads * architecture.head_dim
    output = (2 if spec.guided else 1) * tokens * width * 4
    return max(need["text"], need["denoise"] + 4 * output)


def say_what_comes(search: Search, need_bytes: int, progress: Progress) -> None:
    """What will run, the options that were set, and how much will be sampled and tried."""
    seeds = f"seed{'' if len(search.seeds) == 1 else 's'} {', '.join(map(str, search.seeds))}"
    progress.say(summary(search.backbone, search.spec, seeds, need_bytes))
    say_options("search_masks", search.options, search.values, search.backbone.name, progress)
    layers = search.backbone.architecture.layers
    passes = 1 + sum(mask.kept_share for mask in search.masks if not mask.is_dense)
    cost = f"{passes:.2f} times the attention of a step"
    if search.sees_output:
        cost += f" and {layers * (len(search.masks) - 1)} more passes through the model"
    progress.say(
        f"{counted(len(search.prompts), 'prompt')} with {counted(len(search.seeds), 'seed')} to step "
        f"{search.steps[-1] + 1} of {search.spec.steps}, {counted(len(search.steps), 'step')} of each looked at: "
        f"{counted(layers, 'layer')}, {counted(len(search.masks), 'mask')}, {cost} there"
    )
