"""The two models of a distillation: the frozen teacher, and the student with what of it is trained.

Letters: B batch, C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from vdit_cli.artifacts.atomic import replacing
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.base import Backbone, TextStates, Trainable, Trains
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.lora import ADAPTER_FOLDER, write_adapter
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.distillation.fitting import autocast, number_format
from vdit_cli.distillation.mlcd import Predict
from vdit_cli.errors import ENVIRONMENT, EvditError
from vdit_cli.recipe_training import StudentOptions
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

ADAPTER = "default"
"""The name under which peft keeps the one adapter of a student."""
PAIR_ENDS = (f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")
"""How peft names the two matrices beside a layer."""


@dataclass(frozen=True)
class Pair:
    """The opened teacher and student; weights are read when first needed. The student may wear masks."""

    teacher: Trainable
    student: Trainable

    def teaching(self) -> AbstractContextManager[None]:
        """Inside the block `teacher` answers as the teacher, which it always does where it is a network of its own."""
        return nullcontext()


def open_pair(options: StudentOptions, device: torch.device, progress: Progress) -> Pair:
    """Open the model twice: as the teacher, and with `options.checkpoint` as the student. Reads no weights."""
    return Pair(opened(options, device, progress, None), opened(options, device, progress, options.checkpoint))


def opened(options: StudentOptions, device: torch.device, progress: Progress, checkpoint: str | None) -> Trainable:
    """The model, with the transformer of a checkpoint if one is given. Reads no weights.

    What is trained is float32. With LoRA all that is frozen has the precision of the matrix products.
    Raises EvditError as `open_backbone` does, and for a model whose backbone is not made for training.
    """
    half = number_format(options.precision, device) == "bfloat16" and bool(options.lora_rank)
    made = open_backbone(
        find_source(options.model, where=f"--model {options.model}"),
        device=str(device),
        dtype=torch.bfloat16 if half else torch.float32,
        text_encoder=options.text_encoder,
        checkpoint=checkpoint,
        progress=progress,
    )
    if not isinstance(made, Trains):
        raise EvditError(
            f"{made.name} can't be trained: its backbone does not offer what training needs (`Trains`)",
            where=f"--model {options.model}",
            next_steps=["docs/adding-a-backbone.md"],
        )
    return cast(Trainable, made)


def add_lora(student: Trainable, options: StudentOptions, name: str = ADAPTER) -> None:
    """Put low-rank pairs, float32, beside every linear layer of the student's blocks; its own weights are frozen.

    A pair starts as zero, scaled by alpha / rank = 1; peft keeps it under `name`. Raises EvditError (3) without
    the package peft. Source: LoRA, arXiv 2106.09685.
    """
    rank = options.lora_rank
    if importlib.util.find_spec("peft") is None:
        raise EvditError(
            f"LoRA of rank {rank} was asked for, and the package peft is not installed",
            where=f"{options.SECTION}.lora_rank",
            next_steps=["pip install 'evdit[train]'", "--lora-rank 0"],
            exit_code=ENVIRONMENT,
        )
    from peft import LoraConfig, inject_adapter_in_model

    blocks = nn.ModuleList(student.blocks())
    linear = [
        layer.removesuffix(".base_layer")  # of one that has pairs of another name already
        for layer, module in blocks.named_modules()
        if type(module) is nn.Linear and ".lora_" not in layer
    ]
    torch.manual_seed(options.seed)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=linear, init_lora_weights=True)
    inject_adapter_in_model(config, blocks, adapter_name=name)
    for parameter in trained_parameters(student).values():
        parameter.data = parameter.data.float()


def trained_parameters(student: Trainable) -> dict[str, nn.Parameter]:
    """The student's parameters that are trained, all others frozen: its LoRA pairs, or all there are where it has none.

    Names are those of the network's modules.
    """
    everything = student.trainable()
    pairs = [name for name in everything if name.endswith(PAIR_ENDS)]
    return student.trainable(pairs) if pairs else everything


def lora_pairs(trained: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrices A and B of trained pairs by the name of their layer; none where all weights are trained."""
    first, second = PAIR_ENDS
    layers = [name.removesuffix(first) for name in trained if name.endswith(first)]
    return {layer: (trained[layer + first], trained[layer + second]) for layer in layers}


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
    sampler: Sampler | None,
    card: str,
    lineage: tuple[str, ...],
    below: tuple[str, ...],
    plan: MaskPlan | None,
) -> None:
    """Write the student's transformer, its sampler, its card and its plan as one folder, whole or not at all.

    Without a sampler it is sampled as its model is.

    `trained` are its trained parameters by name; what LoRA pairs add is merged into the weights as they are stored, and
    the pairs lie beside in a folder of their own, which is a student too: the weights that it started from, and these.
    `lineage` and the digest of the plan it wears stand in the weights' metadata; in the pairs' stands `below`, which
    begins with the weights that they are added to: of several students in a row all pairs belong to the first start's.
    """
    pairs = lora_pairs(trained)
    deltas = {f"{layer}.weight": up.float() @ down.float() for layer, (down, up) in pairs.items()}
    told, told_of_pairs = (Lineage(each, plan.digest if plan else None).metadata() for each in (lineage, below))
    with replacing(folder) as beside:
        student.write_transformer(beside, {} if pairs else trained, deltas, told)
        if pairs:
            write_adapter(beside / ADAPTER_FOLDER, pairs, told_of_pairs)
        for each in (beside, beside / ADAPTER_FOLDER) if pairs else (beside,):
            if sampler is not None:
                sampler.write(each)
            if plan is not None:
                plan.write(each)
        (beside / "README.md").write_text(card, encoding="utf-8", newline="\n")
