"""OpenSoraT2V against outputs of the original code, and what training and masks ask of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V

GOLDEN = Path(__file__).parents[2] / "golden" / "open_sora_plan"
CALLS = [("transformer-a", call) for call in range(6)] + [("transformer-b", call) for call in range(2)]
INPUTS = ("hidden_states", "timestep", "encoder_hidden_states", "encoder_attention_mask", "attention_mask")
TINY = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "caption_channels": 10}


def golden_call(case: str, call: int) -> tuple[dict[str, Tensor], Tensor]:
    vectors = load_file(GOLDEN / case / "vectors.safetensors")
    inputs = {name: vectors[f"call{call}.{name}"] for name in INPUTS if f"call{call}.{name}" in vectors}
    return inputs, vectors[f"call{call}.output"]


def assert_golden(case: str, ours: Tensor, theirs: Tensor) -> None:
    tolerance = json.loads((GOLDEN / case / "case.json").read_text(encoding="utf-8"))["suggested_tolerance"]
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize(("case", "call"), CALLS)
@torch.no_grad()
def test_outputs_of_the_original(case: str, call: int) -> None:
    inputs, output = golden_call(case, call)
    assert_golden(case, OpenSoraT2V.from_pretrained(GOLDEN / case)(**inputs), output)


@torch.no_grad()
def test_steps_on_the_way() -> None:
    model = OpenSoraT2V.from_pretrained(GOLDEN / "transformer-a")
    inputs, _ = golden_call("transformer-a", 0)
    seen: dict[str, Tensor] = {}
    blocks = model.transformer_blocks
    places = {
        "patch_embed": model.pos_embed,
        "caption_projection": model.caption_projection,
        "block0.attn1": blocks[0].attn1,
        "block0.attn2": blocks[0].attn2,
        "block0.ff": blocks[0].ff,
        "block0.out": blocks[0],
        "block1.out": blocks[1],
    }
    for name, module in places.items():
        module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
    model.adaln_single.register_forward_hook(
        lambda _module, _inputs, output: seen.update(adaln_six=output[0], adaln_embedded_timestep=output[1])
    )
    model(**inputs)
    vectors = load_file(GOLDEN / "transformer-a" / "vectors.safetensors")
    probes = {key.removeprefix("call0.probe."): value for key, value in vectors.items() if ".probe." in key}
    assert probes.keys() == seen.keys()
    for name, theirs in probes.items():
        assert_golden("transformer-a", seen[name].reshape(theirs.shape), theirs)
