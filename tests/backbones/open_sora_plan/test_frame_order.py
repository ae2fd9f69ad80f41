"""Frames in a plan's order inside the transformer: the same predictions, gradients and padding as frame after frame."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.open_sora_plan.opened import opened
from tests.closeness import assert_close
from vdit_cli.attention.bind import Case, bind
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

pytestmark = pytest.mark.numerical

SIZES = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 24, "caption_channels": 10}
GRID = VideoGrid(8, 2, 3)
NESTED = tuple(TileMask.from_stride(8, stride) for stride in (8, 4, 2))
NOT_NESTED = (TileMask(8, (0, 3, 6)), TileMask(8, (0, 4)), TileMask.dense(8))


def transformer() -> OpenSoraT2V:
    """A tiny model of random weights, none of them zero."""
    torch.manual_seed(0)
    model = OpenSoraT2V(SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def inputs(frames: int = 8) -> dict[str, Any]:
    """Noisy latents of two videos, their timesteps and texts."""
    generator = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(2, 4, frames, 4, 6, generator=generator),
        "timestep": torch.tensor([900, 20]),
        "encoder_hidden_states": torch.randn(2, 5, 10, generator=generator),
    }


def bound(model: OpenSoraT2V, masks: tuple[TileMask, ...], frame_order: tuple[int, ...] | None) -> OpenSoraT2V:
    """The masks on the model's sites, its frames held in `frame_order`."""
    case = Case(GRID, 2, 24, 2, torch.float32, torch.device("cpu"))
    for block, mask in zip(model.blocks, masks, strict=True):
        block.attn1.attend = bind(mask, case, "sdpa", frame_order)
    model.frame_order = frame_order
    return model


def outcome(model: OpenSoraT2V) -> dict[str, Tensor]:
    """The prediction, and the gradients of all weights and of the latents."""
    given = inputs()
    given["hidden_states"].requires_grad_()
    model.zero_grad()
    prediction = model(**given)
    prediction.square().mean().backward()
    weights = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return {"prediction": prediction.detach(), "latents": given["hidden_states"].grad, **weights}


@pytest.mark.parametrize("masks", [NESTED, NOT_NESTED], ids=["nested", "not nested"])
def test_the_order_changes_nothing(masks: tuple[TileMask, ...]) -> None:
    """Prediction and every gradient with the plan's order and without; with it nested masks gather nothing."""
    order = MaskPlan("any", GRID, masks).frame_order
    assert order != tuple(range(8))
    expected = outcome(bound(transformer(), masks, None))
    model = bound(transformer(), masks, order)
    gathers = [len(block.attn1.attend.order) > 1 for block in model.blocks]
    assert gathers == ([False] * 3 if masks is NESTED else [True, False, False])
    assert_close(outcome(model), expected, planted=outcome(bound(transformer(), masks[::-1], None)))


@torch.no_grad()
def test_padding_follows_its_frames() -> None:
    """Dense sites under a padded video: any order gives the same."""
    model, padded = transformer(), torch.ones(2, 8, 4, 6)
    padded[0, 5:] = 0
    padded[1, ..., -2:] = 0
    expected = model(**inputs(), attention_mask=padded)
    without = model(**inputs())
    model.frame_order = (0, 4, 2, 6, 1, 3, 5, 7)
    assert_close(model(**inputs(), attention_mask=padded), expected, planted=without)


def test_masks_of_another_order_are_refused() -> None:
    """They would compute something else without a word."""
    order = MaskPlan("any", GRID, NESTED).frame_order
    model = bound(transformer(), NESTED, order)
    model.frame_order = None
    with pytest.raises(ValueError, match="bound for frames in order"):
        model(**inputs())
    model.frame_order = order
    with pytest.raises(ValueError, match="6 frames: the plan puts 8 in order"):
        model(**inputs(frames=6))


@pytest.mark.parametrize("offload", ["none", "model", "block"])
@torch.no_grad()
def test_a_plan_sets_the_order_and_none_takes_it_back(ours: Path, offload: str) -> None:
    """apply_plan on a model opened from its folder, with offload, too; a dense plan leaves frames as they are."""
    backbone = opened(ours, offload=offload)
    grid = backbone.grid(17, 32, 48)
    latents = torch.randn(2, 4, grid.frames, 4, 6, generator=torch.Generator().manual_seed(0))
    masks = (TileMask(5, (0, 2)), TileMask(5, (2,)))
    text, t = backbone.encode_text(["a red circle", "a square"]), torch.tensor([999, 500])
    attends = backbone.apply_plan(MaskPlan("tiny", grid, masks), batch=2)
    assert backbone.transformer.frame_order == (2, 0, 1, 3, 4) and [len(each.order) for each in attends] == [1, 1]
    assert [each.receipt()["global_frames"] for each in attends] == [[0, 2], [2]]
    found = backbone.denoise(latents, t, text)
    case = attends[0].case
    for block, mask in zip(backbone.transformer.blocks, masks, strict=True):
        block.attn1.attend = bind(mask, case)
    backbone.transformer.frame_order = None
    assert_close(found, backbone.denoise(latents, t, text))
    backbone.apply_plan(MaskPlan.uniform("tiny", grid, backbone.architecture, TileMask.dense(5)), batch=2)
    assert backbone.transformer.frame_order is None
