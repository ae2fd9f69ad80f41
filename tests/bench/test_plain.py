"""The plain step against the original's golden outputs: it is another way to the same numbers."""

from __future__ import annotations

import pytest
import torch

from tests.backbones.open_sora_plan.test_fast_step import GOLDEN
from tests.backbones.open_sora_plan.test_transformer import CALLS, assert_golden, golden_call
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.bench.plain import PlainStep

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(("case", "call"), CALLS)
def test_plain_is_what_the_original_computes(case: str, call: int) -> None:
    inputs, output = golden_call(case, call)
    if not (inputs.get("attention_mask", torch.ones(1)) == 1).all():
        pytest.skip("the plain step takes no padded video")
    plain = PlainStep(OpenSoraT2V.from_pretrained(GOLDEN / case))
    states = inputs["encoder_hidden_states"].flatten(1, -2)
    mask = inputs["encoder_attention_mask"].flatten(1)
    assert_golden(case, plain(inputs["hidden_states"], inputs["timestep"], states, mask), output)
