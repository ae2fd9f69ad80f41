"""A mask plan: one tile mask a layer for one architecture and grid, with where it came from and a seal over it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.errors import EvditError, brief, one_line
from vdit_cli.reader import parse, read_text
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask, mean_kept_share
from vdit_cli.tiles.plan_json import (
    PLAN_FILE,
    SCHEMA,
    check_seal,
    plan_file,
    read_stored,
    upgraded,
)

EDITED = "masks seal"
"""What `made_by` calls the making of a plan that a person edited."""


@dataclass(frozen=True)
class MaskPlan:
    """The masks of all self-attention layers, in order, for transformers of one `architecture` at one `grid`.

    `backbone` is the name of the model it was made on, which is only told. `architecture` is None where it is not
    known, as in files of an older schema: then the number of layers alone is held against a model's. `searched_on` is
    the digest of the weights that the masks were chosen on (None: they hold for any weights), `made_by` says by which
    command and options, `predicted` what is expected of it; both hold plain JSON values. `origin` is the file it was
    read from, named in errors; `is_worn` tells that the weights beside it say that they were trained under it, whatever
    it was searched on. Raises ValueError for no layers, masks of other frames, an architecture of other layers.
    """

    backbone: str
    grid: VideoGrid
    masks: tuple[TileMask, ...]
    searched_on: str | None = None
    made_by: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, Any] = field(default_factory=dict)
    architecture: Architecture | None = None
    origin: str | None = field(default=None, compare=False)
    is_worn: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse a plan without layers and masks that are not for the grid."""
        if not self.masks:
            raise ValueError("a plan needs at least one layer")
        if self.architecture is not None and self.architecture.layers != len(self.masks):
            raise ValueError(f"{len(self.masks)} masks do not fit {self.architecture}")
        for mask in self.masks:
            mask.check_grid(self.grid)

    @classmethod
    def uniform(cls, backbone: str, grid: VideoGrid, architecture: Architecture, mask: TileMask) -> MaskPlan:
        """The plan that has `mask` on each layer; it was searched on no weights and fits any."""
        masks = (mask,) * architecture.layers
        return cls(backbone, grid, masks, made_by={"masks": mask.name}, architecture=architecture)

    @classmethod
    def read(cls, path: Path | str, *, sealed: bool = True) -> MaskPlan:
        """The plan in the file `path`, or in plan.json of the run folder `path`.

        `sealed=False` takes a file whose digest is wrong or missing, to seal it again. Raises EvditError for whatever
        is not a whole and consistent plan; its origin names the file and the layer.
        """
        file = plan_file(Path(path))
        origin = str(file)
        stored = parse(read_text(file, "plan"), origin, "plan")
        own = read_stored(upgraded(stored), origin)
        masks = own.masks(origin)
        if sealed:
            check_seal(stored, origin)
        return cls(own.backbone, own.grid, masks, own.searched_on, own.made_by, own.predicted, own.architecture, origin)

    def write(self, path: Path | str) -> Path:
        """Write the sealed plan to the file `path`, or as plan.json into the folder `path`; returns the file.

        Raises EvditError where it can't be written, ValueError for NaN in `made_by` or `predicted`.
        """
        file = Path(path) / PLAN_FILE if Path(path).is_dir() else Path(path)
        write_json(file, {**self.content(), "digest": self.digest})
        return file

    def content(self) -> dict[str, Any]:
        """The plan as plain JSON values, without its digest."""
        return {
            "schema": SCHEMA,
            "backbone": self.backbone,
            "architecture": None if self.architecture is None else asdict(self.architecture),
            "layer_count": len(self.masks),
            "grid": asdict(self.grid),
            "searched_on": self.searched_on,
            "made_by": dict(self.made_by),
            "predicted": dict(self.predicted),
            "layers": [{"mask": mask.name, "global_frames": list(mask.global_frames)} for mask in self.masks],
        }

    @property
    def digest(self) -> str:
        """SHA-256 over the content."""
        return content_digest(self.content())

    @property
    def name(self) -> str:
        """The backbone's name inside a line: it may be that of a folder, which holds any sign."""
        return brief(self.backbone, one_line)

    @property
    def is_dense(self) -> bool:
        """Whether every layer has full attention, F:0."""
        return set(self.masks) == {TileMask.dense(self.grid.frames)}

    @property
    def kept_share(self) -> float:
        """Share of tiles kept, mean over the layers."""
        return mean_kept_share(self.masks)

    @property
    def skipped_share(self) -> float:
        """Share of tiles skipped, mean over the layers."""
        return 1 - self.kept_share

    def distinct(self) -> tuple[TileMask, ...]:
        """The different masks of the plan, in the order in which layers first use them."""
        return tuple(dict.fromkeys(self.masks))

    @property
    def frame_order(self) -> tuple[int, ...]:
        """An order of the frames under which the global frames of layers come first, so that they are one range.

        It serves the layers whose global frames nest ({0} in {0, 4} in {0, 2, 4, 6}), dense ones any order. Where not
        all of them do, it is made for the nest with the most layers, and the others gather their tokens themselves.
        """
        nest = [set(mask.global_frames) for mask in largest_nest(self.masks)]
        first = {frame: level for level, frames in reversed(list(enumerate(nest))) for frame in frames}
        return tuple(sorted(range(self.grid.frames), key=lambda frame: (first.get(frame, len(nest)), frame)))

    def histogram(self) -> dict[str, int]:
        """Layers a mask name, the densest mask first."""
        counts = Counter(sorted(self.masks, key=lambda mask: -mask.kept_tiles))
        names: dict[str, int] = {}
        for mask, layers in counts.items():
            names[mask.name] = names.get(mask.name, 0) + layers
        return names

    def masks_text(self) -> str:
        """The masks in a word: "none" for full attention, "2:6", or layers by mask as in "3x8:0 5x2:6"."""
        if self.is_dense:
            return "none"
        histogram = self.histogram()
        if len(histogram) == 1:
            return next(iter(histogram))
        return " ".join(f"{layers}x{name}" for name, layers in histogram.items())

    def check_fits(self, backbone: str, architecture: Architecture, grid: VideoGrid) -> None:
        """Whether the plan is for this architecture and grid; text may have any length, `backbone` is only told.

        Raises EvditError, with the shape that would fit.
        """
        if architecture.layers != len(self.masks):
            raise EvditError(
                f"the plan has {len(self.masks)} layers, {backbone} has {architecture.layers}: "
                "a plan has one mask a layer",
                where=self.origin,
                next_steps=[f"a plan made on this {backbone}"],
            )
        if self.architecture not in (None, architecture):
            raise EvditError(
                f"the plan is for {self.architecture} ({self.name}), not for {architecture} ({backbone})",
                where=self.origin,
                next_steps=[f"a plan made with --model {backbone}"],
            )
        own, asked = self.grid, grid
        if (asked.frames, asked.rows, asked.cols) != (own.frames, own.rows, own.cols):
            raise EvditError(
                f"a video of {asked.frames} latent frames of {asked.rows} x {asked.cols} tokens does not fit the plan: "
                f"it is for {own.frames} latent frames of {own.rows} x {own.cols}",
                where=self.origin,
                next_steps=[
                    f"a size that gives {own.frames} latent frames of {own.rows} x {own.cols} tokens",
                    "a plan made at this size",
                ],
            )

    def check_weights(self, digest: str, lineage: Collection[str] = (), allow_other: bool = False) -> None:
        """Whether the plan was searched on the weights `digest`, or on weights that these came from (`lineage`).

        Distillation changes weights and leaves a plan right. Raises EvditError unless `allow_other`, or the weights
        wore it in training.
        """
        if (
            self.searched_on is None
            or allow_other
            or self.is_worn
            or self.searched_on == digest
            or self.searched_on in lineage
        ):
            return
        raise EvditError(
            f"the plan was searched on weights {self.searched_on[:12]}, not on {digest[:12]} or their origin",
            where=self.origin,
            next_steps=["--allow-other-weights", "a plan searched on these weights"],
        )


def largest_nest(masks: Iterable[TileMask]) -> tuple[TileMask, ...]:
    """The masks, smallest first, each of whose global frames hold those of the one before, that serve most layers.

    `masks` has one entry a layer; dense ones are left out, since any order serves them. A tie goes to the sparser nest.
    """
    layers = Counter(mask for mask in masks if not mask.is_dense)
    best: dict[TileMask, tuple[int, tuple[TileMask, ...]]] = {}
    for mask in sorted(layers, key=lambda mask: (len(mask.global_frames), mask.global_frames)):
        inside = [best[other] for other in best if set(other.global_frames) < set(mask.global_frames)]
        count, nest = max(inside, key=lambda pair: pair[0], default=(0, ()))
        best[mask] = count + layers[mask], (*nest, mask)
    return max(best.values(), key=lambda pair: pair[0], default=(0, ()))[1]
