"""Which optimiser moves what of a student, and that both go on where they stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distillation.small_mlcd import StopsAt, distill_small
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import Interrupted
from vdit_cli.timing import Silent

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _moved(model: Path, student: Path) -> set[str]:
    """Names of the weights in which a student differs from the model that it began as."""
    before, after = (load_file(folder / WEIGHTS) for folder in (model / "transformer", student))
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("muon_rate", [0.0, 1e-2])
def test_muon_moves_the_matrices_of_blocks_and_nothing_else(made: tuple[Path, Path], tmp_path: Path, muon_rate: float):
    """Without a rate of its own AdamW moves nothing, so what moves is Muon's."""
    student = distill_small(*made, tmp_path / "run", iterations=2, learning_rate=0.0, muon_rate=muon_rate)
    tiny = open_backbone(find_source(str(made[0]), where="--model"), device="cpu", dtype=torch.float32)
    with tiny.resident("transformer"):
        linear = {
            f"{name}.weight"
            for name, module in tiny.network().named_modules()
            if name.startswith("transformer_blocks.") and isinstance(module, torch.nn.Linear)
        }
    moved = _moved(made[0], student)
    assert moved <= linear and (moved == set()) == (muon_rate == 0)
    # A layer whose outcome is multiplied by a gate of 0 has no gradient, and Muon moves nothing without one.
    assert not muon_rate or len(moved) > len(linear) / 2


def test_adamw_moves_matrices_where_muon_has_no_rate(made: tuple[Path, Path], tmp_path: Path):
    moved = _moved(made[0], distill_small(*made, tmp_path / "run", iterations=2))
    assert any(name.endswith("attn1.to_q.weight") for name in moved)


def test_muon_goes_on_bit_for_bit(made: tuple[Path, Path], tmp_path: Path):
    whole = distill_small(*made, tmp_path / "whole", muon_rate=1e-2)
    with pytest.raises(Interrupted):
        distill_small(*made, tmp_path / "parts", StopsAt(3), muon_rate=1e-2)
    parts = distill_small(*made, tmp_path / "parts", muon_rate=1e-2)
    assert (parts / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_muon_moves_all_of_lora_and_the_other_rate_is_told_to_have_no_effect(made: tuple[Path, Path], tmp_path: Path):
    """The same pairs at any rate of AdamW, which would hold states of none of them."""
    pairs = []
    for rate in (0.0, 3e-3):
        progress = Silent()
        origins = {"learning_rate": f"--set distill_mlcd.learning_rate={rate}", "adam": "--set distill_mlcd.adam=adamw"}
        options = {"learning_rate": rate, "muon_rate": 1e-2, "lora_rank": 2, "iterations": 2, "origins": origins}
        student = distill_small(*made, tmp_path / str(rate), progress, **options)
        told = "\n".join(progress.lines)
        for origin in origins.values():
            assert f"warning: {origin} has no effect: muon_rate moves all that is trained, LoRA's pairs" in told
        assert "trains nothing" not in told
        pairs.append(load_file(student / "adapter" / "adapter_model.safetensors"))
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])
    assert any(each.any() for name, each in pairs[0].items() if name.endswith("lora_B.weight"))
