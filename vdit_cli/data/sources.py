"""Where clips come from: a source has its clips in a fixed order, tells their captions and makes their pixels.

Letters: B clips, T pixel frames, H, W pixel height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vdit_cli.data.shapes_world import FRAMES, caption, draw_scenes, leave_out, render
from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.recipe import PrepareDataOptions


@dataclass(frozen=True)
class ClipSize:
    """What every clip of the data has: frames, pixels, and frames a second."""

    video_frames: int
    height: int
    width: int
    fps: int


@dataclass(frozen=True)
class Part:
    """Some clips of a source in order: a name that tells each one apart, and its caption.

    `pixels(start, stop)` are those of its clips, float32 (B, 3, T, H, W) in [-1, 1].
    """

    names: tuple[str, ...]
    captions: tuple[str, ...]
    pixels: Callable[[int, int], Tensor]


class Source(Protocol):
    """Clips by number."""

    def part(self, numbers: range) -> Part:
        """The clips with these numbers, the same whatever else is asked for."""


@dataclass(frozen=True)
class Scenes:
    """The shapes world's training scenes, which show no held-out combination; drawn on `device`.

    Captions leave out each size, motion and background at the share `left_out`.
    """

    size: ClipSize
    seed: int
    two_objects: float
    left_out: float
    device: torch.device

    def part(self, numbers: range) -> Part:
        """The scenes with these numbers in the endless row that belongs to the seed."""
        scenes = draw_scenes(self.seed, len(numbers), "train", self.two_objects, start=numbers.start)

        def pixels(start: int, stop: int) -> Tensor:
            return render(scenes[start:stop], self.device, self.size.video_frames, self.size.height) * 2 - 1

        said = leave_out(scenes, self.seed, self.left_out, start=numbers.start)
        names = tuple(f"shapes {self.seed} {number}" for number in numbers)
        return Part(names, tuple(map(caption, said)), pixels)


def shapes(options: PrepareDataOptions, size: ClipSize, device: torch.device) -> Scenes:
    """The procedural world. Raises EvditError (exit 2) for clips longer than its scenes, or not square."""
    if size.video_frames > FRAMES:
        raise EvditError(
            f"{size.video_frames} frames are more than a scene of shapes has: {FRAMES}",
            where=options.where("video_frames") or f"--model {options.model}",
            next_steps=[f"--frames {FRAMES}"],
        )
    if size.height != size.width:
        side = min(size.height, size.width)
        raise EvditError(
            f"scenes of shapes are square: {size.height} x {size.width} is not",
            where=options.where("height") or options.where("width") or f"--model {options.model}",
            next_steps=[f"--height {side} --width {side}"],
        )
    return Scenes(size, options.seed, options.two_objects, options.left_out, device)


SOURCES: Mapping[str, Callable[[PrepareDataOptions, ClipSize, torch.device], Source]] = {"shapes": shapes}
"""What `--source` takes by name."""


def check_source(options: PrepareDataOptions) -> None:
    """Raise EvditError (exit 2), naming those there are, where no source or an unknown one was asked for."""
    if options.source is None:
        raise EvditError(
            "there is nothing to prepare: --source names where the clips come from",
            where="--source",
            next_steps=[f"--source {name}" for name in SOURCES],
        )
    if options.source not in SOURCES:
        raise unknown_name("source", options.source, SOURCES, f"--source {options.source}", flag="--source")
