"""The transformers whose steps are measured: sizes by name, and the plans that they run under. No torch.

Letters: F latent frames, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.reader import MOST_SIZE
from vdit_cli.recipe import BenchModelOptions
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

HISTOGRAM_FRAMES = 8
HISTOGRAM_MASKS = ("8:0", "4:4", "2:6", "1:7")
HISTOGRAMS: dict[str, tuple[int, int, int, int]] = {
    "r=.025": (3, 21, 7, 1),
    "r=.05": (2, 11, 11, 8),
    "r=.1": (2, 6, 11, 13),
    "r=.2": (2, 4, 5, 21),
    "r=.4": (2, 2, 4, 24),
}
"""Layers of 32 under each of HISTOGRAM_MASKS, by threshold: they follow from Table 1 of arXiv 2502.06155."""
DENSE = "dense"

Plans = dict[str, tuple[TileMask, ...]]
"""Masks, one a layer, by the name of the plan."""


@dataclass(frozen=True)
class ModelSize:
    """An Open-Sora-Plan transformer at one video size, and how much text its prompts have.

    `text_tokens` and `null_tokens` are the valid ones of prompt and negative prompt, `padded_tokens` what the text
    encoder gives, `text_width` the width of its states.
    """

    name: str
    layers: int
    heads: int
    head_dim: int
    grid: VideoGrid
    text_width: int
    plans: tuple[str, ...]
    text_tokens: int = 100
    null_tokens: int = 80
    padded_tokens: int = 512

    @property
    def channels(self) -> int:
        """Width of a token."""
        return self.heads * self.head_dim

    @property
    def config(self) -> dict[str, Any]:
        """The transformer's config.json."""
        return {
            "num_layers": self.layers,
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "caption_channels": self.text_width,
        }

    def with_frames(self, frames: int) -> ModelSize:
        """The same model for a video of another length."""
        return replace(self, grid=VideoGrid(frames, self.grid.rows, self.grid.cols))


SIZES: dict[str, ModelSize] = {
    "open-sora-plan-29": ModelSize(
        "open-sora-plan-29", 32, 24, 96, VideoGrid(8, 45, 80), 4096, ("4:4", "3:5", "2:6", "1:7", *HISTOGRAMS)
    ),
    "open-sora-plan-93": ModelSize(
        "open-sora-plan-93", 32, 24, 96, VideoGrid(24, 45, 80), 4096, ("12:12", "8:16", "6:18", "4:20", "3:21")
    ),
    "shapes": ModelSize("shapes", 8, 6, 48, VideoGrid(8, 8, 8), 192, ("2:6", "1:7", "r=.1"), 12, 2, 32),
}
"""Sizes by name; 100 and 80 valid text tokens stand for a long prompt and the published negative one [ours]."""


def size_of(options: BenchModelOptions) -> ModelSize:
    """The preset with what the options set instead; any of it makes it another size's name. Raises EvditError (2)."""
    if options.preset not in SIZES:
        raise unknown_name("preset", options.preset, SIZES, where=options.where("preset"))
    own = SIZES[options.preset]
    frames = options.latent_frames or own.grid.frames
    rows, cols = (own.grid.rows, own.grid.cols) if options.frame_tokens is None else (1, options.frame_tokens)
    size = replace(
        own,
        layers=options.layers or own.layers,
        heads=options.heads or own.heads,
        head_dim=options.head_dim or own.head_dim,
        grid=VideoGrid(frames, rows, cols),
        text_width=options.text_width or own.text_width,
    )
    if size == own:
        return own
    if size.head_dim % 6:
        raise EvditError(
            f"a head of {size.head_dim} does not fit 3D rotary positions: it must be a multiple of 6",
            where=options.where("head_dim"),
            next_steps=[f"--head-dim {max(6, size.head_dim // 6 * 6)}"],
        )
    plans = own.plans if frames == own.grid.frames else uniform_names(frames)
    name = f"{size.layers}x{size.heads}x{size.head_dim}-{frames}x{size.grid.frame_tokens}"
    return replace(size, name=name, plans=plans)


def uniform_names(frames: int) -> tuple[str, ...]:
    """The masks of strides 2, 3, 4 and F that are not full, the densest first."""
    masks = dict.fromkeys(TileMask.from_stride(frames, stride) for stride in (2, 3, 4, frames))
    return tuple(mask.name for mask in masks if not mask.is_dense)


def plans_of(options: BenchModelOptions, size: ModelSize) -> Plans:
    """The dense plan, then those that the options name, else the size's own. Raises EvditError (2) for no plan."""
    where = options.where("plans")
    names = size.plans if options.plans is None else [name.strip() for name in options.plans.split(",")]
    plans: Plans = {DENSE: (TileMask.dense(size.grid.frames),) * size.layers}
    for name in names:
        plans[name] = masks_of(name, size, where)
    return plans


def masks_of(name: str, size: ModelSize, where: str | None = None) -> tuple[TileMask, ...]:
    """The masks of a plan: "k:m" in all layers, or "r=.1" as the histogram of that threshold, the densest first.

    A model of other than 32 layers gets the histogram's shares. Raises EvditError (2) for a name that is neither.
    """
    if not name.startswith("r="):
        return (TileMask.parse(name, size.grid.frames, where=where),) * size.layers
    if name not in HISTOGRAMS:
        raise unknown_name("histogram", name, HISTOGRAMS, where=where)
    if size.grid.frames != HISTOGRAM_FRAMES:
        raise EvditError(
            f"{name} is a histogram of masks over {HISTOGRAM_FRAMES} latent frames: this video has {size.grid.frames}",
            where=where,
            next_steps=[f"--plans {','.join(uniform_names(size.grid.frames))}"],
        )
    counts = HISTOGRAMS[name]
    of_32 = [mask for mask, layers in zip(HISTOGRAM_MASKS, counts, strict=True) for _ in range(layers)]
    picked = [of_32[(2 * layer + 1) * len(of_32) // (2 * size.layers)] for layer in range(size.layers)]
    return tuple(TileMask.parse(mask, HISTOGRAM_FRAMES) for mask in picked)


def lengths_of(options: BenchModelOptions) -> tuple[int, ...]:
    """The latent frames at which a step is measured with a fixed number of global frames; none if not asked for.

    Raises EvditError (2) for what is no list of lengths, or a length that has no mask of so many global frames.
    """
    if options.lengths is None:
        return ()
    where = options.where("lengths")
    try:
        lengths = tuple(sorted({int(part) for part in options.lengths.split(",")}))
    except ValueError as error:
        rule = f"{options.lengths!r} is no list of latent frames"
        raise EvditError(rule, where=where, next_steps=["--lengths 8,12,16,24"]) from error
    if max(lengths) > MOST_SIZE:
        raise EvditError(f"{max(lengths)} latent frames are too many: {MOST_SIZE} is the most", where=where)
    for frames in lengths:
        TileMask.parse(f"{options.global_frames}:{frames - options.global_frames}", frames, where=where)
    return lengths
