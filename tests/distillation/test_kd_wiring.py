"""What both networks of a knowledge distillation are given, and when which is which: written down in the real stage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.backbones.open_sora_plan.opened import opened
from tests.closeness import assert_close
from tests.distillation.prepared import write_data
from tests.distillation.small_kd import distill_small_kd
from tests.distillation.small_mlcd import distill_small
from tests.tiny_pipeline import write_pipeline
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.open_sora_plan.backbone import OpenSoraPlan
from vdit_cli.data.shards import open_data
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

MASKS = (TileMask(3, (1,)), TileMask.dense(3))
"""The first layer alone is masked, in an order of frames that is not their own."""
ORDER = [1, 0, 2]
TERMS = {"attention_weight": 0.5, "hidden_weight": 2.0, "output_weight": 3.0}
CLIPS = 8


class Call(NamedTuple):
    """A network asked for its layers: what it got, and at each layer whether gradients flowed and what it wore,
    and all that it made."""

    x: Tensor
    t: list[int]
    text: TextStates
    weights: dict[str, Tensor]
    layers: list[tuple[bool, tuple[str, ...]]]
    made: list[Tensor]


class Made(NamedTuple):
    """A distillation that was written down: calls of student and teacher in turns."""

    run: Path
    calls: list[Call]
    metrics: list[dict[str, float]]

    @property
    def trained(self) -> list[tuple[Call, Call]]:
        """(student, teacher) of each iteration."""
        pairs = list(zip(self.calls[::2], self.calls[1::2], strict=True))
        return [pair for pair in pairs if pair[0].layers[0][0]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is sampled with guidance."""
    return write_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(model: Path) -> Path:
    """Its clips, one of them held out."""
    return write_data(model.parent / "data", model, CLIPS)


@pytest.fixture(scope="module")
def plan(model: Path) -> Path:
    """A plan of MASKS."""
    backbone = opened(model)
    made = MaskPlan("tiny", backbone.grid(9, 32, 48), MASKS, architecture=backbone.architecture)
    return made.write(model.parent / "plan.json")


def worn(backbone: OpenSoraPlan) -> tuple[str, ...]:
    """The mask of each site as it is now."""
    return tuple(
        "none" if site.attend is None else str(site.attend.mask.global_frames) for site in backbone.attention_sites()
    )


def written_down(model: Path, data: Path, plan: Path, run: Path, **changes: Any) -> Made:
    """A distillation of two iterations with all that its networks were asked."""
    calls: list[Call] = []
    layerwise = OpenSoraPlan.layerwise

    def told(self: OpenSoraPlan, x: Tensor, t_B: Tensor, text: TextStates) -> Iterator[tuple[Tensor, ...]]:
        now = {name: each.detach().clone() for name, each in self.transformer.named_parameters()}
        call = Call(x.detach().clone(), t_B.tolist(), text, now, [], [])
        calls.append(call)

        def layers() -> Iterator[tuple[Tensor, ...]]:
            inner = layerwise(self, x, t_B, text)
            while True:
                call.layers.append((torch.is_grad_enabled(), worn(self)))
                layer = next(inner, None)
                if layer is None:
                    call.layers.pop()
                    return
                call.made.extend(each.detach().clone() for each in layer)
                yield layer

        return layers()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenSoraPlan, "layerwise", told)
        options = {"masks": str(plan), "iterations": 2, "learning_rate": 1e-2, "held_out": 1, **TERMS, **changes}
        distill_small_kd(model, data, run, **options)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return Made(run, calls, [json.loads(line) for line in lines])


@pytest.fixture(scope="module", params=["full", "lora"])
def made(request, model: Path, data: Path, plan: Path) -> Made:
    """Two networks, or one that is both, half of its captions emptied."""
    rank = {"full": 0, "lora": 2}[request.param]
    return written_down(model, data, plan, model.parent / request.param, lora_rank=rank, null_share=0.5)


@pytest.fixture(scope="module")
def student(model: Path, data: Path) -> Path:
    """A student of 4 steps without guidance, and its pairs."""
    return distill_small(model, data, model.parent / "mlcd", lora_rank=2, milestones=(999, 749, 499, 149))


def test_the_student_alone_is_masked_and_learns(made: Made):
    """The teacher is dense and without gradients, at every layer; the masked one alone has them."""
    masked, dense = (tuple(str(mask.global_frames) for mask in masks) for masks in (MASKS, MASKS[1:] * 2))
    for mine, wanted in made.trained:
        assert mine.layers == [(True, masked)] * 3
        assert {has_grad for has_grad, _ in wanted.layers} == {False}
        assert {masks for _, masks in wanted.layers} <= {dense, ("none", "none")} and len(wanted.layers) == 3
    assert len(made.trained) == 2


def test_both_are_asked_the_same(made: Made):
    for mine, wanted in zip(made.calls[::2], made.calls[1::2], strict=True):
        assert torch.equal(mine.x, wanted.x) and mine.t == wanted.t
        assert torch.equal(mine.text.states_BLC, wanted.text.states_BLC)


def test_the_teacher_never_changes(made: Made, model: Path):
    """Its weights are the stored ones in the last call as in the first, while the student's move."""
    stored = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    for _, wanted in made.trained:
        plain = {name.replace(".base_layer.", "."): each for name, each in wanted.weights.items()}
        assert all(torch.equal(plain[name], value) for name, value in stored.items())
    first, last = made.trained[0][0].weights, made.trained[-1][0].weights
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert changed and (all("lora_" in name for name in changed) or not any("lora_" in name for name in first))


def seen(backbone: OpenSoraPlan, call: Call, order: list[int]) -> list[Tensor]:
    """Of a plain forward, each layer's attention output and block output, frames in their own order, and the output."""
    found: list[Tensor] = []
    keep = [
        module.register_forward_hook(lambda module, given, out: found.append(out))
        for block in backbone.transformer.blocks
        for module in (block.attn1, block)
    ]
    with torch.no_grad():
        output = backbone.denoise(call.x, torch.tensor(call.t), call.text)
    for each in keep:
        each.remove()
    return [*(x.unflatten(1, (3, -1))[:, order].flatten(1, 2) for x in found), output]


@pytest.mark.numerical
def test_the_first_loss_is_that_of_two_plain_forwards(made: Made, model: Path, plan: Path):
    """Attention of the masked layer alone, both blocks, the output; each layer beside its own; each weight its own."""
    call, _ = made.trained[0]
    masked, dense = opened(model), opened(model)
    masked.apply_plan(MaskPlan.read(plan), len(call.x))
    mine, wanted = seen(masked, call, ORDER), seen(dense, call, [0, 1, 2])

    def error(own: Tensor, other: Tensor) -> float:
        difference = (own.double() - other.double()).flatten(1).square().sum(1)
        return float((difference / other.double().flatten(1).square().sum(1)).mean())

    attention, hidden = [error(mine[i], wanted[i]) for i in (0, 2)], [error(mine[i], wanted[i]) for i in (1, 3)]
    output = error(mine[4], wanted[4])
    told = {"attention_loss": attention[0], "hidden_loss": sum(hidden) / 2, "output_loss": output}
    told["loss"] = 0.5 * attention[0] + 2 * told["hidden_loss"] + 3 * output
    found = {name: made.metrics[0][name] for name in told}
    assert_close(found, told, rtol=1e-3)
    swapped = 2 * attention[0] + 0.5 * told["hidden_loss"] + 3 * output
    everywhere = 0.5 * sum(attention) / 2 + 2 * told["hidden_loss"] + 3 * output
    for planted in (swapped, everywhere):
        assert_close(found["loss"], told["loss"], rtol=1e-3, planted=planted)


@pytest.mark.numerical
def test_the_teacher_answers_as_the_start_does(made: Made, model: Path):
    """In each iteration, whatever the student has learnt until then."""
    dense = opened(model)
    for mine, wanted in made.trained:
        assert_close(wanted.made, seen(dense, wanted, [0, 1, 2]), rtol=1e-4, atol=1e-4, planted=mine.made)


def test_a_guided_start_learns_empty_captions_at_all_times(made: Made, model: Path):
    """A share of the texts is the null text, and times are of the whole schedule."""
    with opened(model).resident("text"):
        null = opened(model).encode_text([""])
    calls = [mine for mine, _ in made.trained]
    empty = [bool(mask.sum() == null.mask_BL.sum()) for call in calls for mask in call.text.mask_BL]
    assert 0 < sum(empty) < len(empty)
    times = [t for call in calls for t in call.t]
    assert len(set(times)) == len(times) and all(0 <= t < 1000 for t in times)


def test_a_student_learns_at_its_own_times_and_without_empty_captions(
    model: Path, data: Path, plan: Path, student: Path
):
    """Those of its sampler alone, each of them; unguided, it keeps every caption."""
    changes = {"checkpoint": str(student), "null_share": 1.0, "iterations": 6}
    made = written_down(model, data, plan, model.parent / "timed", **changes)
    assert {t for call in made.calls for t in call.t} == {999, 749, 499, 149}
    assert all(int(mask.sum()) > 1 for call in made.calls for mask in call.text.mask_BL)


@pytest.mark.numerical
def test_inputs_are_noised_clips(made: Made, model: Path, data: Path):
    """What is left without a clip's share of signal is normal noise, another for each sample."""
    clips, schedule = open_data(str(data)), NoiseSchedule.from_config(opened(model).scheduler_config)
    latents = clips.latents(range(CLIPS))
    noises = []
    for mine, _ in made.trained:
        for x, t in zip(mine.x, mine.t, strict=True):
            a, s = float(schedule.alphas[t]), float(schedule.sigmas[t])
            left = (x - a * latents) / s
            # The clip that was noised leaves the noise, whose mean square is 1; another one leaves more.
            noises.append(left.flatten(1)[left.flatten(1).square().mean(1).argmin()])
    noise = torch.stack(noises)
    assert 0.8 < float(noise.std()) < 1.2 and torch.cdist(noise, noise).fill_diagonal_(99).min() > 1


@pytest.mark.numerical
def test_the_teacher_of_an_adapter_is_the_adapter(model: Path, data: Path, plan: Path, student: Path):
    """Gone on with, the teacher has the pairs as they were: its layers are those of the student's own checkpoint."""
    changes = {"checkpoint": str(student / "adapter"), "lora_rank": 2}
    made = written_down(model, data, plan, model.parent / "continued", **changes)
    for mine, _ in made.trained[:1]:
        masked, dense = opened(model, checkpoint=str(student)), opened(model, checkpoint=str(student))
        masked.apply_plan(MaskPlan.read(plan), len(mine.x))
        own, wanted = seen(masked, mine, ORDER), seen(dense, mine, [0, 1, 2])
        error = ((own[0] - wanted[0]).flatten(1).square().sum(1) / wanted[0].flatten(1).square().sum(1)).mean()
        assert_close(made.metrics[0]["attention_loss"], float(error), rtol=1e-2)
    names = made.trained[1][0].weights
    moved, still = (names[f"transformer_blocks.0.attn1.to_q.lora_B.{name}.weight"] for name in ("default", "start"))
    first = made.trained[0][0].weights["transformer_blocks.0.attn1.to_q.lora_B.start.weight"]
    assert torch.equal(still, first) and not torch.equal(moved, still) and bool(still.any())


def test_recomputed_blocks_change_nothing(model: Path, data: Path, plan: Path, made: Made):
    """Of all numbers of the metrics, to the bit."""
    rank = 2 if any("lora_" in name for name in made.calls[0].weights) else 0
    changes = {"lora_rank": rank, "null_share": 0.5, "gradient_checkpointing": True}
    again = written_down(model, data, plan, model.parent / f"lean-{rank}", **changes)
    for found, before in zip(again.metrics, made.metrics, strict=True):
        assert {key: value for key, value in found.items() if "seconds" not in key and "per_second" not in key} == {
            key: value for key, value in before.items() if "seconds" not in key and "per_second" not in key
        }
