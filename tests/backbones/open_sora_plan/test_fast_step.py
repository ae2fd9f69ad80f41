"""The step made fast, held to the step as it was: golden outputs, the same numbers, and what is no longer done."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from tests.backbones.open_sora_plan.opened import PROMPT, latents, opened
from tests.backbones.open_sora_plan.test_transformer import CALLS, assert_golden, golden_call, tiny, tiny_inputs
from tests.closeness import assert_close
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.open_sora_plan.prepared_text import cropped
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.transformer_layers import modulated_norm

GOLDEN = Path(__file__).parents[2] / "golden" / "open_sora_plan"


def prepared_inputs(model: OpenSoraT2V, inputs: dict) -> dict:
    """The same inputs, their text prepared."""
    left = {name: inputs[name] for name in ("hidden_states", "timestep", "attention_mask") if name in inputs}
    text = model.prepare_text(inputs["encoder_hidden_states"], inputs.get("encoder_attention_mask"))
    return left | {"encoder_hidden_states": text}


@pytest.mark.numerical
@pytest.mark.parametrize(("case", "call"), CALLS)
@torch.no_grad()
def test_outputs_of_the_original_from_joined_weights_and_prepared_text(case: str, call: int) -> None:
    inputs, output = golden_call(case, call)
    model = OpenSoraT2V.from_pretrained(GOLDEN / case)
    separate = model(**inputs)
    model.fuse()
    assert_close(model(**inputs), separate)
    fast = model(**prepared_inputs(model, inputs))
    assert_golden(case, fast, output)
    assert_close(fast, separate)
    model.unfuse()
    assert torch.equal(model(**inputs), separate)


def test_a_fused_model_is_saved_under_the_original_keys(tmp_path: Path) -> None:
    folder = GOLDEN / "transformer-a"
    model = OpenSoraT2V.from_pretrained(folder)
    keys = list(model.state_dict())
    model.fuse()
    assert model.is_fused and list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    theirs, ours = (load_file(place / "diffusion_pytorch_model.safetensors") for place in (folder, tmp_path))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.numerical
@torch.no_grad()
def test_joining_takes_no_memory_and_sees_changes_in_place() -> None:
    model, inputs = tiny(), tiny_inputs()
    model.fuse()
    site = model.transformer_blocks[0].attn1
    storages = {part.weight.untyped_storage().data_ptr() for part in (site.to_q, site.to_k, site.to_v)}
    assert len(storages) == 1
    changed, twin = model, tiny()
    for each in (changed, twin):
        each.transformer_blocks[0].attn1.to_k.weight.mul_(3)
    assert_close(changed(**inputs), twin(**inputs))


@pytest.mark.numerical
@torch.no_grad()
def test_copies_casts_and_loaded_weights_never_meet_stale_joint_weights() -> None:
    inputs = tiny_inputs()
    model = tiny()
    model.fuse()
    twin = copy.deepcopy(model)
    assert not twin.is_fused
    twin.transformer_blocks[0].attn1.to_q.weight.zero_()
    assert (twin(**inputs) - model(**inputs)).abs().max() > 0.1
    other = tiny(seed=3)
    model.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(model(**inputs), other(**inputs))
    model.fuse()
    assert model.double().is_fused
    double = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    assert_close(model(**double), other.double()(**double))


def test_gradients_pass_by_the_joint_weights() -> None:
    separate, joined = tiny(), tiny()
    joined.fuse()
    for model in (separate, joined):
        model(**tiny_inputs()).square().mean().backward()
    for (name, mine), theirs in zip(joined.named_parameters(), separate.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad), name


def test_an_adapter_must_be_merged_first() -> None:
    model = tiny()
    model.transformer_blocks[0].attn1.to_k = nn.Sequential(model.transformer_blocks[0].attn1.to_k)
    with pytest.raises(ValueError, match="merge adapters first"):
        model.fuse()


def test_text_is_cropped_to_the_last_token_that_any_row_keeps() -> None:
    states = torch.arange(2 * 6.0).view(2, 6, 1)
    short, none = cropped(states, torch.tensor([[1, 1, 1, 0, 0, 0]] * 2))
    assert torch.equal(short, states[:, :3]) and none is None
    longest, mask = cropped(states, torch.tensor([[1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0]]))
    assert torch.equal(longest, states[:, :4])
    assert mask.tolist() == [[1, 1, 0, 0], [1, 0, 1, 1]]
    assert cropped(states, None) == (states, None)


def test_a_row_without_any_token_keeps_its_padding() -> None:
    """Upstream adds the same to all of its scores, so it reads the padding: cropping would change the output."""
    states, mask = torch.randn(2, 6, 1), torch.tensor([[1, 0, 0, 0, 0, 0], [0] * 6])
    assert all(mine is theirs for mine, theirs in zip(cropped(states, mask), (states, mask), strict=True))


@torch.no_grad()
def test_text_is_projected_once_a_video() -> None:
    model, inputs = tiny(), tiny_inputs()
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v", "caption_projection")):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    prepared = prepared_inputs(model, inputs)
    assert len(calls) == 1 + 2 * 2
    for _ in range(3):
        model(**prepared)
    assert len(calls) == 5


@pytest.mark.numerical
@torch.no_grad()
def test_rows_at_one_timestep_are_modulated_by_one_row() -> None:
    model, inputs = tiny(), tiny_inputs()
    rows: list[int] = []
    model.adaln_single.register_forward_hook(lambda _module, _inputs, output: rows.append(len(output[0])))
    apart = model(**inputs | {"timestep": torch.tensor([500, 500])})
    together = model(**inputs | {"timestep": torch.tensor([500]).expand(2)})
    assert rows == [2, 1]
    assert_close(together, apart)


@pytest.mark.numerical
def test_modulation_is_norm_times_one_plus_scale_plus_shift() -> None:
    x, shift, scale = torch.randn(3, 5, 8).double(), torch.randn(3, 1, 8).double(), torch.randn(3, 1, 8).double()
    centred = x - x.mean(-1, keepdim=True)
    truth = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift
    assert_close(modulated_norm(x, shift, scale, 1e-6), truth)
    for row in range(3):
        one = modulated_norm(x, shift[row : row + 1], scale[row : row + 1], 1e-6)
        assert_close(one[row], truth[row])


class Waits(TorchDispatchMode):
    """Counts the operations that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_no_step_waits_for_the_device() -> None:
    model = tiny()
    model.fuse()
    prepared = prepared_inputs(model, tiny_inputs())
    with Waits() as waits:
        model(**prepared)
    assert waits.found == []
    with Waits() as waits:
        model(**tiny_inputs() | {"attention_mask": torch.ones(2, 3, 4, 6)})
    assert waits.found


@pytest.mark.numerical
@torch.no_grad()
def test_blocks_share_one_graph() -> None:
    model, inputs, counted = tiny(num_layers=4), tiny_inputs(), CompileCounter()
    model.fuse()
    prepared = prepared_inputs(model, inputs)
    expected = model(**prepared)
    model.compile_blocks(counted)
    assert_close(model(**prepared), expected)
    assert counted.frame_count == 1


@pytest.mark.numerical
@pytest.mark.parametrize("offload", ["none", "model", "block"])
@torch.no_grad()
def test_a_backbone_prepares_text_under_every_offload(ours, offload) -> None:
    plain = opened(ours)
    text = plain.encode_text([PROMPT, "a blue square"])
    padded = TextStates(nn.functional.pad(text.states_BLC, (0, 0, 0, 5)), nn.functional.pad(text.mask_BL, (0, 5)))
    t = torch.tensor([500]).expand(2)
    expected = plain.denoise(latents(), t, text)
    backbone = opened(ours, offload=offload)
    backbone.make_fast(compiled=False)
    for _ in range(2):
        with backbone.resident("transformer"):
            prepared = backbone.prepare_text(padded)
            assert prepared.projected_BLC.shape[1] == int(text.mask_BL.sum(1).max())
            assert len(prepared.keys_values) == (0 if offload == "block" else 2)
            assert_close(backbone.denoise(latents(), t, prepared), expected)
            assert backbone.transformer.is_fused == (offload != "block")
        with backbone.resident("vae"):
            assert ("transformer" in backbone.parts.loaded) == (offload == "none")


def test_what_is_loaded_later_is_made_fast_too(ours) -> None:
    backbone = opened(ours)
    assert not backbone.transformer.is_fused
    backbone.make_fast(compiled=False)
    assert backbone.transformer.is_fused
    backbone.parts.drop("transformer")
    assert backbone.transformer.is_fused
