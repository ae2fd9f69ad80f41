"""Which optimiser moves what of a student, and that both go on where they stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distillation.small_mlcd import StopsAt, distill_small
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import Interrupted

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
