"""The memory of a knowledge distillation: counted from shapes, told beforehand, and refused with what would fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.backbones.open_sora_plan.opened import opened
from tests.closeness import assert_within
from tests.distillation.prepared import write_data
from tests.distillation.small_kd import SMALL, distill_small_kd
from tests.tiny_pipeline import write_pipeline
from vdit_cli.backbones.open_sora_plan.backbone import OpenSoraPlan
from vdit_cli.data.shards import open_data
from vdit_cli.distillation import kd_memory
from vdit_cli.distillation.kd_job import KdJob, prepare
from vdit_cli.distillation.kd_memory import check_memory, needed_bytes, smaller
from vdit_cli.errors import OUT_OF_MEMORY, EvditError
from vdit_cli.parallel.groups import ALONE
from vdit_cli.recipe_training import DistillKdOptions
from vdit_cli.sampling.memory import gib
from vdit_cli.timing import Silent


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and its data."""
    folder = tmp_path_factory.mktemp("prepared")
    model = write_pipeline(folder / "model")
    return model, write_data(folder / "data", model)


@pytest.fixture(scope="module")
def job(prepared: tuple[Path, Path]) -> KdJob:
    """A job that was checked and nothing more."""
    options = DistillKdOptions(model=str(prepared[0]), data=str(prepared[1]), **SMALL)
    return prepare(options, open_data(str(prepared[1])), ALONE, Silent())


@pytest.mark.numerical
def test_sizes_are_those_of_the_real_transformer(prepared: tuple[Path, Path]):
    """Weights, linear layers and tokens exactly; what a block keeps about as autograd holds it."""
    backbone = opened(prepared[0])
    made = backbone.training_sizes(4, (9, 32, 48), torch.float32)
    transformer = opened(prepared[0]).transformer
    assert made.weights == sum(each.numel() for each in transformer.parameters())
    linear = [each for block in transformer.blocks for each in block.modules() if isinstance(each, nn.Linear)]
    assert made.matrices == sum(each.weight.numel() for each in linear)
    assert made.pairs == sum(each.in_features + each.out_features for each in linear)
    x = torch.randn(4, 18, 48)
    assert made.stream_bytes == x.numel() * 4
    held: dict[int, int] = {}
    weights = {each.untyped_storage().data_ptr() for each in transformer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    cos, sin = transformer.rotary((3, 2, 3), x.device)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        out = transformer.blocks[0](x, torch.randn(4, 6, 48), torch.randn(4, 1, 48), None, cos, sin)
    assert out.requires_grad
    assert_within(abs(made.block_bytes / sum(held.values()) - 1), 0.45, planted=5.0)


def test_what_is_needed_counts_weights_states_and_activations(job: KdJob):
    """Two networks, or one and pairs; blocks that are computed again keep less; a smaller part too."""
    made = job.start.training_sizes(4, (9, 32, 48), torch.float32)
    options = job.options
    whole = needed_bytes(job, options)
    # Two copies, gradients, their average and AdamW's two states, each of 4 bytes a number.
    assert whole > made.weights * 4 * 6 + 2 * made.block_bytes
    eight_bits = needed_bytes(job, replace(options, adam="adamw-8bit"))
    assert whole - eight_bits == 6 * made.weights
    lora = needed_bytes(job, replace(options, lora_rank=2))
    assert whole - lora == made.weights * 4 * 6 - made.weights * 4 - 2 * made.pairs * (8 + 16)
    muon, few = needed_bytes(job, replace(options, muon_rate=0.01)), replace(options, lora_rank=2)
    assert whole - muon == 4 * made.matrices
    assert needed_bytes(job, few) - needed_bytes(job, replace(few, muon_rate=0.01)) == 4 * 2 * made.pairs
    unseen = needed_bytes(job, replace(options, hidden_weight=0.0))
    assert (whole - unseen) == int(1.25 * 2 * made.stream_bytes)
    few = replace(options, lora_rank=2)  # 64 pairs are more than the tiny model's own weights
    whole, lean = needed_bytes(job, few), [needed_bytes(job, each) for each in smaller(few).values()]
    assert all(each < whole for each in lean) and min(lean) == lean[-1]


def test_muon_keeps_what_is_counted(prepared: tuple[Path, Path], tmp_path: Path, monkeypatch):
    """The states that both optimisers hold after a step: two numbers a weight that AdamW moves, one that Muon does."""
    from vdit_cli.distillation import student_run

    made: list[Any] = []
    build = student_run.build_optimisers
    monkeypatch.setattr(
        student_run, "build_optimisers", lambda *given, **named: made.append(build(*given, **named)) or made[-1]
    )
    sizes = opened(prepared[0]).training_sizes(4, (9, 32, 48), torch.float32)
    for changes, weights, matrices in (
        ({}, sizes.weights, sizes.matrices),
        ({"lora_rank": 2}, 2 * sizes.pairs, 2 * sizes.pairs),
    ):
        distill_small_kd(*prepared, tmp_path / str(changes), iterations=1, muon_rate=0.01, **changes)
        states = (state for each in made[-1].stepped for state in each.state.values())
        held = [each for state in states for each in state.values() if torch.is_tensor(each) and each.ndim]
        assert sum(each.numel() for each in held) == 2 * (weights - matrices) + matrices


def test_too_little_memory_is_refused_before_weights_load(job: KdJob, prepared, tmp_path: Path, monkeypatch):
    """With flags under which it fits, the mildest first; else with the size that is needed."""

    def never(self: OpenSoraPlan) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(OpenSoraPlan, "_load_transformer", never)
    job = replace(job, options=replace(job.options, lora_rank=2))
    ways = {flags: needed_bytes(job, each) for flags, each in smaller(job.options).items()}
    for free, offered in ((max(ways.values()), list(ways)[:3]), (min(ways.values()), list(ways)[-1:])):
        monkeypatch.setattr(kd_memory, "free_bytes", lambda device, free=free: free)
        with pytest.raises(EvditError, match=f"needs about {gib(needed_bytes(job, job.options))}, and") as caught:
            distill_small_kd(*prepared, tmp_path / "run", lora_rank=2)
        assert caught.value.exit_code == OUT_OF_MEMORY and list(caught.value.next_steps) == offered
    monkeypatch.setattr(kd_memory, "free_bytes", lambda device: 1)
    with pytest.raises(EvditError) as caught:
        check_memory(job)
    assert caught.value.next_steps[0].startswith("a machine with ")
    assert not (tmp_path / "run").exists()


def test_what_is_needed_is_said(prepared: tuple[Path, Path], job: KdJob, tmp_path: Path):
    progress = Silent()
    distill_small_kd(*prepared, tmp_path / "run", progress, iterations=1)
    need = gib(needed_bytes(job, job.options))
    assert any(line.startswith(f"memory: needs about {need}, ") for line in progress.lines)
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["state"] == "done"


@pytest.mark.parametrize("recompute", [False, True])
def test_differences_of_the_loss_are_kept_on_the_cpu(prepared, tmp_path: Path, monkeypatch, recompute: bool):
    """Where blocks are computed again; else where they are."""
    kept: list[bool] = []
    from vdit_cli.distillation import kd_lesson

    save = kd_lesson.save_on_cpu
    monkeypatch.setattr(kd_lesson, "save_on_cpu", lambda pin: kept.append(pin) or save(pin))
    distill_small_kd(*prepared, tmp_path / "run", iterations=1, gradient_checkpointing=recompute)
    # Two layers with two terms each, and the output.
    assert kept == [False] * (5 if recompute else 0)
