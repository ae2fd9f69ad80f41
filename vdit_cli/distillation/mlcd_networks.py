"""The two models of a distillation: the frozen teacher, and the student with what of it is trained.

Letters: B batch, C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from vdit_cli.artifacts.atomic import replacing
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.base import Backbone, TextStates, Trainable, Trains
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.distillation.fitting import autocast
from vdit_cli.distillation.mlcd import Predict
from vdit_cli.errors import ENVIRONMENT, EvditError
from vdit_cli.recipe import DistillMlcdOptions
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

ADAPTER = "default"
"""The name under which peft keeps the one adapter of a student."""


@dataclass(frozen=True)
class Pair:
    """The opened teacher and student; weights are read when first needed. The student may wear masks."""

    teacher: Trainable
    student: Trainable


def open_pair(options: DistillMlcdOptions, device: torch.device, progress: Progress) -> Pair:
    """Open the model twice: as the teacher, and with `options.checkpoint` as the student. Reads no weights.

    What is trained is float32. With LoRA all that is frozen has the precision of the matrix products.
    Raises EvditError as `open_backbone` does, and for a model whose backbone is not made for training.
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
    if not isinstance(made[0], Trains):
        raise EvditError(
            f"{made[0].name} can't be trained: its backbone does not offer what training needs (`Trains`)",
            where=f"--model {options.model}",
            next_steps=["docs/adding-a-backbone.md"],
        )
    return Pair(*cast("list[Trainable]", made))


def add_lora(student: Trainable, rank: int, seed: int) -> dict[str, nn.Module]:
    """Freeze the student and put trainable low-rank pairs, float32, beside every linear layer of its blocks.

    Returns the adapted layers by the name of their own weight. A pair starts as zero, scaled by alpha / rank = 1.
    Raises EvditError (3) without the package peft. Source: LoRA, arXiv 2106.09685.
    """
    if importlib.util.find_spec("peft") is None:
        raise EvditError(
            f"LoRA of rank {rank} was asked for, and the package peft is not installed",
            where="distill_mlcd.lora_rank",
            next_steps=["pip install 'evdit[train]'", "--lora-rank 0"],
            exit_code=ENVIRONMENT,
        )
    from peft import LoraConfig, inject_adapter_in_model

    own_names = {id(parameter): name for name, parameter in student.trainable().items()}
    blocks = nn.ModuleList(student.blocks())
    linear = [name for name, module in blocks.named_modules() if type(module) is nn.Linear]
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=linear, init_lora_weights=True)
    inject_adapter_in_model(config, blocks, adapter_name=ADAPTER)
    layers = [cast(Any, module) for module in blocks.modules() if hasattr(module, "get_delta_weight")]
    adapted = {own_names[id(layer.base_layer.weight)]: layer for layer in layers}
    for parameter in trained_parameters(student, adapted).values():
        parameter.data = parameter.data.float()
    return adapted


def trained_parameters(student: Trainable, adapted: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The student's parameters that are trained, all others frozen: the pairs of `adapted` layers, or all there are."""
    everything = student.trainable()
    return student.trainable([name for name in everything if ".lora_" in name]) if adapted else everything


class Learned(nn.Module):
    """What a training changes, as one module for the loop: the student's trained parameters, and the target's.

    `trained` are parameters of the student's transformer. Names are theirs with slashes for dots, below "student" and
    "target"; the student's are those very parameters. The target follows by `follow` and has no gradients.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], has_target: bool) -> None:
        super().__init__()
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
    def holding(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside the block the student has the `values` of the same names, its own again afterwards."""
        own = {name: each.detach().clone() for name, each in self.named_parameters() if name in values}
        try:
            self._put(values)
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named_parameters():
            if name in values:
                parameter.copy_(values[name])


def predicting(backbone: Backbone, text: TextStates, precision: str) -> Predict:
    """The network of a backbone for these texts (B, L, C), its prediction in float32."""

    def predict(x_BCFhw: Tensor, t_B: Tensor) -> Tensor:
        with autocast(precision, backbone.device):
            return backbone.denoise(x_BCFhw, t_B, text).float()

    return predict


def predicting_with(backbone: Trainable, values: Mapping[str, Tensor], text: TextStates, precision: str) -> Predict:
    """The same network with other `values` for some of its parameters."""

    def predict(x_BCFhw: Tensor, t_B: Tensor) -> Tensor:
        with autocast(precision, backbone.device):
            return backbone.predict_with(values, x_BCFhw, t_B, text).float()

    return predict


def write_student(
    student: Trainable,
    folder: Path,
    trained: Mapping[str, Tensor],
    adapted: Mapping[str, nn.Module],
    sampler: Sampler,
    card: str,
    lineage: tuple[str, ...],
    plan: MaskPlan | None,
) -> None:
    """Write the student's transformer, its sampler, its card and its plan as one folder, whole or not at all.

    `trained` are its trained parameters by name; of `adapted` layers (`add_lora`) what the pairs add is merged.
    `lineage` and the digest of the plan it wears stand in the weights' metadata.
    """
    deltas = {name: cast(Any, module).get_delta_weight(ADAPTER) for name, module in adapted.items()}
    told = Lineage(lineage, plan.digest if plan else None).metadata()
    with replacing(folder) as beside:
        student.write_transformer(beside, {} if adapted else trained, deltas, told)
        sampler.write(beside)
        if plan is not None:
            plan.write(beside)
        (beside / "README.md").write_text(card, encoding="utf-8", newline="\n")
