"""The attention shapes that are measured: presets by name, and a shape put together from flags. No torch.

Letters: B batch, H heads, D head width, F latent frames, S tokens a frame, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdit_cli.attention.presets import PRESETS, Preset
from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.recipe import BenchAttentionOptions
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

MOST_FRAMES = 256
"""Latent frames that the comparison on a small grid can still hold at several tokens a frame."""


ALL_TABLES: tuple[tuple[str, bool], ...] = (
    ("open-sora-plan-29", False),
    ("open-sora-plan-93", False),
    ("open-sora-plan-29", True),
    ("open-sora-plan-93", True),
    ("cogvideox-5b", False),
    ("wan-480p", False),
    ("wan-720p", False),
    ("hunyuan-720p", False),
    ("cogvideox-5b", True),
    ("wan-480p", True),
    ("wan-720p", True),
    ("shapes", False),
    ("tiles-256", False),
)
"""(preset, with backward) of every table of docs/benchmarks.md, in order: what `--all` measures."""

PAPER_PRESETS = ("open-sora-plan-29", "open-sora-plan-93")
"""The two shapes of the paper's Table 1: what `--table 1` measures."""


@dataclass(frozen=True)
class Shape:
    """One table: an attention shape, its masks (the densest first), and whether the backward pass is timed too."""

    name: str
    grid: VideoGrid
    heads: int
    head_dim: int
    batch: int
    masks: tuple[TileMask, ...]
    backward: bool

    @property
    def key(self) -> str:
        """The name of the table in files: the shape's, with what tells it from its forward-only sister."""
        return f"{self.name}-backward" if self.backward else self.name

    @property
    def title(self) -> str:
        """The shape in one line."""
        which = "forward + backward" if self.backward else "forward"
        batch = f"batch {self.batch} x " if self.batch > 1 else ""
        sizes = f"{self.grid.tokens:,} tokens ({self.grid}), {batch}{self.heads} heads of {self.head_dim}"
        return f"{self.name}: {sizes}, {which}"

    def flops(self, kept_share: float) -> float:
        """Floating-point operations on the kept pairs: 4 B H D a pair forward, 3.5 times that with backward."""
        pairs = kept_share * self.grid.tokens**2
        return 4 * self.batch * self.heads * self.head_dim * pairs * (3.5 if self.backward else 1)


def shapes_of(options: BenchAttentionOptions) -> list[Shape]:
    """The tables that the options ask for. Raises EvditError (exit 2) for unknown names and sizes that do not fit."""
    if options.every and options.table is not None:
        raise EvditError("--all holds Table 1 already: give one of them", where="--table", next_steps=["--all"])
    if options.table not in (None, 1):
        rule = f"table {options.table} is not there: of the paper's tables, 1 is about attention alone"
        raise EvditError(rule, where=options.where("table"), next_steps=["--table 1"])
    if options.every or options.table is not None:
        check_no_shape_of_its_own(options)
        asked = list(ALL_TABLES) if options.every else [(name, options.backward) for name in PAPER_PRESETS]
        return [shape_of(options, name, backward) for name, backward in asked]
    return [shape_of(options, options.preset, options.backward)]


def check_no_shape_of_its_own(options: BenchAttentionOptions) -> None:
    """Raise EvditError (exit 2) where a list of presets is asked for and one of its sizes is set as well."""
    flags = ("preset", "latent_frames", "frame_tokens", "heads", "head_dim", "text", "masks")
    for name in flags:
        if options.where(name) is not None:
            asked = "--all" if options.every else "--table 1"
            rule = f"{asked} measures presets as they are: {name.replace('_', '-')} can't be set with it"
            raise EvditError(rule, where=options.where(name), next_steps=[asked, "--preset NAME with your own sizes"])


def shape_of(options: BenchAttentionOptions, name: str, backward: bool) -> Shape:
    """The preset `name` with the sizes that the options set instead; any of them makes it another shape's name."""
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS, where=options.where("preset"))
    preset = PRESETS[name]
    grid = grid_of(options, preset)
    heads, head_dim = options.heads or preset.heads, options.head_dim or preset.head_dim
    masks = masks_of(options, preset, grid.frames)
    if (grid.frames, grid.frame_tokens, grid.text_tokens, heads, head_dim) != (
        preset.grid.frames,
        preset.grid.frame_tokens,
        preset.grid.text_tokens,
        preset.heads,
        preset.head_dim,
    ):
        text = f"+{grid.text_tokens}" if grid.text_tokens else ""
        name = f"{grid.frames}x{grid.frame_tokens}{text}-{heads}x{head_dim}"
    return Shape(name, grid, heads, head_dim, options.batch, masks, backward)


def grid_of(options: BenchAttentionOptions, preset: Preset) -> VideoGrid:
    """The preset's grid with the frames, tokens a frame and text that the options set. Raises EvditError."""
    own = preset.grid
    frames = options.latent_frames or own.frames
    if frames > MOST_FRAMES:
        raise EvditError(
            f"{frames} latent frames are too many: at most {MOST_FRAMES} can be compared with the reference",
            where=options.where("latent_frames"),
            next_steps=[f"--latent-frames {MOST_FRAMES}"],
        )
    rows, cols = (own.rows, own.cols) if options.frame_tokens is None else (1, options.frame_tokens)
    before, after = own.text_before, own.text_after
    if options.text is not None:
        before, after = (0, options.text) if own.text_after else (options.text, 0)
    return VideoGrid(frames, rows, cols, before, after)


def masks_of(options: BenchAttentionOptions, preset: Preset, frames: int) -> tuple[TileMask, ...]:
    """The masks named in the options, else the preset's, else (other frames) strides 2, 3, 4 and F: densest first.

    Raises EvditError for a name that is no mask over so many frames; the full mask is measured anyway and left out.
    """
    where = options.where("masks")
    if options.masks is not None:
        names = [name for name in options.masks.replace(",", " ").split() if name]
        if not names:
            rule = "no mask is named: --masks takes names with commas between them"
            raise EvditError(rule, where=where, next_steps=[f"--masks {','.join(preset.masks)}"])
        masks = [TileMask.parse(name, frames, where=where) for name in names]
    elif frames == preset.grid.frames:
        masks = [TileMask.parse(name, frames) for name in preset.masks]
    else:
        masks = [TileMask.from_stride(frames, stride) for stride in (2, 3, 4, frames)]
    distinct = {mask for mask in masks if not mask.is_dense}
    if not distinct:
        raise EvditError(
            f"every mask is full over {frames} frames: there is nothing to compare with dense attention",
            where=where or options.where("latent_frames"),
            next_steps=["--latent-frames 8 --masks 1:7"],
        )
    return tuple(sorted(distinct, key=lambda mask: -mask.kept_tiles))


def kernels_of(options: BenchAttentionOptions, known: tuple[str, ...]) -> tuple[str, ...]:
    """The kernels that the options ask for, in the order of the table; none for "none", all for "all".

    Raises EvditError (exit 2) for a name that is not `known`.
    """
    names = options.kernels.replace(",", " ").split()
    if names in (["all"], ["none"]):
        return known if names == ["all"] else ()
    for name in names or [""]:
        if name not in known:
            raise unknown_name("kernel", name, (*known, "all", "none"), where=options.where("kernels"))
    return tuple(name for name in known if name in names)
