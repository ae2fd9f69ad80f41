"""The two networks of knowledge distillation: a dense teacher, and the same weights under masks, which learn.

With LoRA both are one network: while it teaches, its sites attend densely and its pairs are those that it began with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from safetensors import safe_open

from vdit_cli.attention.bind import Attend, bind
from vdit_cli.backbones.base import AddsAdapters, LayerwiseTrainable, TellsLayers, Trainable
from vdit_cli.backbones.lora import DOWN, UP, Lora
from vdit_cli.distillation.kd import Layers
from vdit_cli.distillation.student_networks import ADAPTER, Pair, add_lora, opened
from vdit_cli.errors import EvditError, quoted
from vdit_cli.recipe_training import DistillKdOptions
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Progress

START = "start"
"""The name under which peft keeps the pairs that a student began with."""


@dataclass(frozen=True)
class OneNetwork(Pair):
    """A teacher and a student of one network; `dense` is each site's full attention once masks are bound."""

    dense: list[Attend] = field(default_factory=list)

    def bind_dense(self, attends: tuple[Attend, ...], kernel: str) -> None:
        """Bind full attention beside the student's masks, in their order of frames."""
        for attend in attends:
            case = replace(attend.case, needs_grad=False)
            self.dense.append(bind(TileMask.dense(case.grid.frames), case, kernel, attend.frame_order))

    @contextmanager
    def teaching(self) -> Iterator[None]:
        """Inside the block the network is the teacher."""
        sites: list[Any] = list(self.student.attention_sites())
        worn = [site.attend for site in sites]
        try:
            self._put(sites, self.dense, START)
            yield
        finally:
            self._put(sites, worn, ADAPTER)

    def _put(self, sites: list[Any], attends: list[Attend], adapter: str) -> None:
        for site, attend in zip(sites, attends, strict=True):
            site.attend = attend
        # Pairs of a name that a layer does not have add nothing: so a teacher without START is the frozen weights.
        for layer in adapted_layers(self.student):
            layer._active_adapter = [adapter]


def open_kd(options: DistillKdOptions, device: torch.device, progress: Progress) -> tuple[Pair, LayerwiseTrainable]:
    """(teacher and student, the start that both are), opened without reading weights.

    An adapter as the checkpoint is gone on with where LoRA is asked for: both are then the model below it. Raises
    EvditError as `opened` does, for a backbone that does not tell its layers, and for pairs of another rank.
    """
    start = opened(options, device, progress, options.checkpoint)
    if not isinstance(start, TellsLayers):
        raise EvditError(
            f"{start.name} can't be taught layer by layer: its backbone does not offer what that needs (`TellsLayers`)",
            where=f"--model {options.model}",
            next_steps=["docs/adding-a-backbone.md"],
        )
    start = cast(LayerwiseTrainable, start)
    if not options.lora_rank:
        return Pair(opened(options, device, progress, options.checkpoint), start), start
    lora = start_adapter(start, options)
    both = opened(options, device, progress, None) if lora else start
    return OneNetwork(both, both), start


def start_adapter(start: LayerwiseTrainable, options: DistillKdOptions) -> Lora | None:
    """The adapter that the start is, to be gone on with. Raises EvditError (2) where its rank is not the one asked."""
    loras = start.loras if isinstance(start, AddsAdapters) else ()
    if not options.lora_rank or not loras:
        return None
    (lora,) = loras
    ranks = {len(down) for down, _ in values_of(lora).values()}
    if ranks != {options.lora_rank}:
        told = " and ".join(map(str, sorted(ranks)))
        raise EvditError(
            f"the adapter has pairs of rank {told}: it is gone on with at its own rank, not at {options.lora_rank}",
            where=f"--lora-rank {options.lora_rank}",
            next_steps=[
                f"--lora-rank {max(ranks)}",
                f"--checkpoint {quoted(str(lora.file.parent.parent))}  (a student with the adapter merged)",
            ],
        )
    return lora


def values_of(lora: Lora) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The matrices A and B of an adapter by layer, float32, scaled so that B A is what it adds."""
    with safe_open(lora.file, framework="pt") as file:
        return {
            name.removesuffix(".weight"): (
                file.get_tensor(pair.down).float(),
                lora.scale * pair.factor * file.get_tensor(pair.up).float(),
            )
            for name, pair in lora.pairs.items()
        }


def put_pairs(pair: OneNetwork, lora: Lora | None, options: DistillKdOptions) -> None:
    """Put the pairs that learn beside the blocks' linear layers, and those of the adapter gone on with for the teacher.

    Raises EvditError (2) for an adapter that has pairs elsewhere.
    """
    both = pair.student
    add_lora(both, options)
    if lora is None:
        return
    add_lora(both, options, START)
    layers: dict[str, Any] = {name: each for name, each in both.network().named_modules() if hasattr(each, DOWN)}
    values = values_of(lora)
    strange = sorted(values.keys() - layers.keys())
    if strange:
        raise EvditError(
            f"the adapter has pairs beside {strange[0]}: only those beside the blocks' linear layers are gone on with",
            where=f"--checkpoint {options.checkpoint}",
            next_steps=["--lora-rank 0"],
        )
    for layer, matrices in ((layers[name], each) for name, each in values.items()):
        for side, matrix in zip((DOWN, UP), matrices, strict=True):
            for name in (ADAPTER, START):
                weight = getattr(layer, side)[name].weight
                weight.data = matrix.to(weight.device, copy=True)


def adapted_layers(both: Trainable) -> list[Any]:
    """The layers of the blocks that have pairs beside them."""
    return [module for block in both.blocks() for module in block.modules() if hasattr(module, DOWN)]


def taught(pair: Pair, layers: Layers) -> Layers:
    """The teacher's layers as they are asked for, each computed while it teaches, without gradients."""
    while True:
        with pair.teaching(), torch.no_grad():
            layer = next(layers, None)
        if layer is None:
            return
        yield layer
