"""The two models of a distillation: the frozen teacher, and the student with what of it is trained.

Letters: B batch, C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vdit_cli.artifacts.atomic import replacing
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.base import Backbone, TextStates
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.open_sora_plan.loading import read_tensors, weight_files
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.distillation.fitting import autocast
from vdit_cli.distillation.mlcd import Predict
from vdit_cli.errors import ENVIRONMENT, EvditError
from vdit_cli.parallel.sharding import blocks_of
from vdit_cli.recipe import DistillMlcdOptions
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

ADAPTER = "default"
"""The name under which peft keeps the one adapter of a student."""


@dataclass(frozen=True)
class Pair:
    """The opened teacher and student; weights are read when first needed. The student may wear masks."""

    teacher: Backbone
    student: Backbone


def open_pair(options: DistillMlcdOptions, device: torch.device, progress: Progress) -> Pair:
    """Open the model twice: as the teacher, and with `options.checkpoint` as the student. Reads no weights.

    What is trained is float32. With LoRA all that is frozen has the precision of the matrix products.
    Raises EvditError as `open_backbone` does, and for a model that offers no transformer to train.
    """
    with autocast(options.precision, device):
        half = bool(options.lora_rank) and torch.is_autocast_enabled(device.type)
    source = find_source(options.model, where=f"--model {options.model}")
    made = [
        open_backbone(
            source,
            device=str(device),
            dtype=torch.bfloat16 if half else torch.float32,
            text_encoder=options.text_encoder,
            checkpoint=checkpoint,
            progress=progress,
        )
        for checkpoint in (None, options.checkpoint)
    ]
    if not hasattr(type(made[0]), "transformer"):
        raise EvditError(
            f"{made[0].name} can't be trained: its backbone offers no transformer", where=f"--model {options.model}"
        )
    return Pair(*made)


def transformer_of(backbone: Backbone) -> nn.Module:
    """The network inside a backbone, loaded if it is not."""
    return cast(nn.Module, backbone.transformer)  # type: ignore[attr-defined]


def add_lora(transformer: nn.Module, rank: int, seed: int) -> None:
    """Freeze the network and put trainable low-rank pairs, float32, beside every linear layer of its blocks.

    A pair starts as zero, scaled by alpha / rank = 1. Raises EvditError (3) without the package peft.
    Source: LoRA, arXiv 2106.09685.
    """
    if importlib.util.find_spec("peft") is None:
        raise EvditError(
            f"LoRA of rank {rank} was asked for, and the package peft is not installed",
            where="distill_mlcd.lora_rank",
            next_steps=["pip install 'evdit[train]'", "--lora-rank 0"],
            exit_code=ENVIRONMENT,
        )
    from peft import LoraConfig, inject_adapter_in_model

    transformer.requires_grad_(False)
    inside = {module for block in blocks_of(transformer) for module in block.modules() if type(module) is nn.Linear}
    names = [name for name, module in transformer.named_modules() if module in inside]
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=names, init_lora_weights=True)
    inject_adapter_in_model(config, transformer, adapter_name=ADAPTER)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


class Learned(nn.Module):
    """What a training changes, as one module for the loop: the student's trained parameters, and the target's.

    Names are the transformer's with slashes for dots, below "student" and "target"; the student's are the very
    parameters of the transformer. The target follows by `follow` and has no gradients.
    """

    def __init__(self, transformer: nn.Module, has_target: bool) -> None:
        super().__init__()
        trained = {name: each for name, each in transformer.named_parameters() if each.requires_grad}
        for name, parameter in trained.items():
            self.register_parameter("student/" + name.replace(".", "/"), parameter)
        for name, parameter in trained.items() if has_target else ():
            still = nn.Parameter(parameter.detach().clone(), requires_grad=False)
            self.register_parameter("target/" + name.replace(".", "/"), still)

    def part(self, part: str) -> dict[str, nn.Parameter]:
        """The parameters of "student" or "target" by their name in the transformer."""
        return {
            name.removeprefix(part + "/").replace("/", "."): each
            for name, each in self.named_parameters()
            if name.startswith(part + "/")
        }

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """Move the target towards the student: target = keep * target + (1 - keep) * student."""
        target, student = self.part("target"), self.part("student")
        if target:
            torch._foreach_lerp_(list(target.values()), [student[name] for name in target], 1.0 - keep)

    @contextmanager
    def holding(self, values: dict[str, Tensor]) -> Iterator[None]:
        """Inside the block the student has the `values` of the same names, its own again afterwards."""
        own = {name: each.detach().clone() for name, each in self.named_parameters() if name in values}
        try:
            self._put(values)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, parameter in self.named_parameters():
            if name in values:
                parameter.copy_(values[name])


def predicting(backbone: Backbone, text: TextStates, precision: str) -> Predict:
    """The network of a backbone for these texts (B, L, C), its prediction in float32."""

    def predict(x_BCFhw: Tensor, t_B: Tensor) -> Tensor:
        with autocast(precision, backbone.device):
            return backbone.denoise(x_BCFhw, t_B, text).float()

    return predict


def predicting_with(backbone: Backbone, values: dict[str, nn.Parameter], text: TextStates, precision: str) -> Predict:
    """The same network with other `values` for some of its parameters."""

    def predict(x_BCFhw: Tensor, t_B: Tensor) -> Tensor:
        given = (x_BCFhw, t_B, text.states_BLC, text.mask_BL)
        with autocast(precision, backbone.device):
            return functional_call(transformer_of(backbone), dict(values), given).float()

    return predict


def plain_state(transformer: nn.Module) -> dict[str, Tensor]:
    """The network's parameters and buffers by the names that they have without adapters, LoRA added in."""
    adapted = {name: module for name, module in transformer.named_modules() if hasattr(module, "get_delta_weight")}
    state: dict[str, Tensor] = {}
    for name, value in transformer.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = value.detach()
    for name, module in adapted.items():
        delta = cast(Any, module).get_delta_weight(ADAPTER).detach()
        state[f"{name}.weight"] = (state[f"{name}.weight"].float() + delta.float()).to(state[f"{name}.weight"].dtype)
    return state


def stored_dtype(backbone: Backbone) -> torch.dtype:
    """The number format in which the transformer's own file holds its weights."""
    _, first = next(read_tensors(weight_files(cast(Any, backbone).transformer_folder)[0]))
    return first.dtype


def write_student(
    student: Backbone,
    folder: Path,
    dtype: torch.dtype,
    sampler: Sampler,
    card: str,
    lineage: tuple[str, ...],
    plan: MaskPlan | None,
) -> None:
    """Write the student's transformer, its sampler, its card and the plan it wears as one folder, whole or not at all.

    `lineage` and the plan's digest stand in the weights' metadata too.
    """
    transformer = cast(Any, transformer_of(student))
    state = {name: value.cpu() for name, value in plain_state(transformer).items()}
    with torch.device("meta"):
        plain = type(transformer)(transformer.config)
    plain.load_state_dict(state, strict=True, assign=True)
    with replacing(folder) as beside:
        beside.mkdir()
        plain.save_pretrained(beside, dtype=dtype, metadata=Lineage(lineage, plan.digest if plan else None).metadata())
        sampler.write(beside)
        if plan is not None:
            plan.write(beside)
        (beside / "README.md").write_text(card, encoding="utf-8", newline="\n")
