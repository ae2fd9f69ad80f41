"""Seeing what attention sites attend with while a model samples: taps put on for chosen steps and taken off again.

Letters: B rows of the network's batch, N tokens, H heads, D head width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdit_cli.backbones.base import Backbone
from vdit_cli.errors import FAILED, EvditError, nearest
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.timing import Progress

Shown = tuple[Tensor, Tensor, Tensor, Tensor]
"""q, k, v and the dense output of a site, (B, N, H, D) each, positions already in q and k; with guidance the first half
of B is the conditional branch."""
See = Callable[[int, int, Shown], None]
"""What is told of a site: (layer, step, shown)."""


class Taps(Progress):
    """A `Progress` that counts the steps of one trajectory, taps the sites at the chosen ones and then asks to stop.

    Everything else goes to `progress`. Use as a `with` block around `sample`: on leaving it every site has the
    `attend` that it had before.
    """

    def __init__(
        self,
        sites: Mapping[int, nn.Module],
        steps: Sequence[int],
        grid: VideoGrid,
        see: See,
        progress: Progress,
    ) -> None:
        self.sites = sites
        self.steps = frozenset(steps)
        self.grid = grid
        self.see = see
        self.progress = progress
        self.step = 0
        self.before: dict[int, Any] = {}
        self.seen: set[tuple[int, int]] = set()

    def __enter__(self) -> Taps:
        self.before = {layer: getattr(site, "attend", None) for layer, site in self.sites.items()}
        self.place()
        return self

    def __exit__(self, *error: object) -> None:
        for layer, site in self.sites.items():
            site.attend = self.before[layer]

    @property
    def is_done(self) -> bool:
        """Whether the last chosen step is over."""
        return self.step > max(self.steps)

    def place(self) -> None:
        """Put the taps on where the step that comes is a chosen one, else the attention that was there before."""
        for layer, site in self.sites.items():
            attend: Any = Tap(self, layer) if self.step in self.steps else self.before[layer]
            site.attend = attend

    def stage(self, label: str, total: int) -> None:
        """Begin a part; told on."""
        self.progress.stage(label, total)

    def advance(self, note: str = "") -> None:
        """A step is done; told on. Raises EvditError where a site of a chosen step was never called."""
        missed = [layer for layer in self.sites if self.step in self.steps and (layer, self.step) not in self.seen]
        if missed:
            raise EvditError(f"layer {missed[0]} has an attention site that the model never called: nothing to look at")
        self.step += 1
        self.place()
        self.progress.advance(note)

    def end_stage(self) -> None:
        """Passed on."""
        self.progress.end_stage()

    def say(self, line: str) -> None:
        """A line; told on."""
        self.progress.say(line)

    def detail(self, line: str) -> None:
        """A line for those who want all; told on."""
        self.progress.detail(line)

    def should_stop(self) -> bool:
        """Whether the person asked to stop, or nothing is left to see."""
        return self.is_done or self.progress.should_stop()


class Tap:
    """Dense attention that shows `taps` what it attends with and what comes out; stands in a site's `attend`."""

    def __init__(self, taps: Taps, layer: int) -> None:
        self.taps = taps
        self.layer = layer

    def __call__(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        """Attention (B, N, H, D), as the site alone would compute it.

        Raises EvditError for a site without 3D attention (exit 2) and for values that are not finite (exit 1).
        """
        taps = self.taps
        if q_BNHD.ndim != 4 or q_BNHD.shape[1] != taps.grid.tokens or k_BNHD.shape != q_BNHD.shape:
            raise EvditError(
                f"layer {self.layer} attends over {q_BNHD.shape[1]} tokens with {k_BNHD.shape[1]}, the video has "
                f"{taps.grid.tokens}: only 3D self-attention over all frames has tiles",
                next_steps=["--layers with those that do"],
            )
        for name, x in (("queries", q_BNHD), ("keys", k_BNHD), ("values", v_BNHD)):
            if not bool(torch.isfinite(x[:1]).all()):
                number = str(x.dtype).removeprefix("torch.")
                raise EvditError(
                    f"the {name} of layer {self.layer} are not finite in step {taps.step}, in {number}",
                    next_steps=["--dtype float32"] if x.dtype != torch.float32 else [],
                    exit_code=FAILED,
                )
        out_BHND = F.scaled_dot_product_attention(
            q_BNHD.transpose(1, 2), k_BNHD.transpose(1, 2), v_BNHD.transpose(1, 2)
        )
        out_BNHD = out_BHND.transpose(1, 2)
        taps.see(self.layer, taps.step, (q_BNHD, k_BNHD, v_BNHD, out_BNHD))
        taps.seen.add((self.layer, taps.step))
        return out_BNHD


def site_names(backbone: Backbone, sites: Sequence[nn.Module]) -> tuple[str, ...]:
    """The sites' names in the module `transformer` of the backbone; "layer i" where they can't be told."""
    root = getattr(backbone, "transformer", None)
    names = {id(module): name for name, module in root.named_modules()} if isinstance(root, nn.Module) else {}
    return tuple(names.get(id(site), f"layer {index}") for index, site in enumerate(sites))


def read_layers(text: str, layers: int, where: str) -> tuple[int, ...]:
    """Layers of "all" or of numbers and ranges, "0,4-7", sorted. Raises EvditError for what the model does not have."""
    if text.strip() == "all":
        return tuple(range(layers))
    found: set[int] = set()
    for part in text.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part, re.ASCII)
        first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (0, -1)
        if last < first or last >= layers:
            known = [str(layer) for layer in range(layers)]
            near = [str(layers - 1)] if numbers and last >= layers else nearest(part.strip(), known)
            raise EvditError(
                f"unknown layer {part.strip()!r}: the model has layers 0 to {layers - 1}",
                where=where,
                next_steps=[*(f"--layers {name}" for name in near), "--layers all"],
            )
        found.update(range(first, last + 1))
    return tuple(sorted(found))
