"""OpenSoraT2V against outputs of the original code, and what training and masks ask of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.closeness import assert_close
from vdit_cli.attention.bind import Case, bind
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.errors import EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

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
    assert_close(ours, theirs, **tolerance)


@pytest.mark.numerical
@pytest.mark.parametrize(("case", "call"), CALLS)
@torch.no_grad()
def test_outputs_of_the_original(case: str, call: int) -> None:
    inputs, output = golden_call(case, call)
    assert_golden(case, OpenSoraT2V.from_pretrained(GOLDEN / case)(**inputs), output)


@pytest.mark.numerical
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


def tiny(seed: int = 0, **changes: object) -> OpenSoraT2V:
    torch.manual_seed(seed)
    model = OpenSoraT2V(TINY | changes)
    model.initialise(torch.Generator().manual_seed(seed))
    torch.nn.init.normal_(model.proj_out.weight, std=0.1)
    return model


def tiny_inputs(batch: int = 2, frames: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, frames, 4, 6, generator=draw),
        "timestep": torch.arange(batch) * 100 + 7,
        "encoder_hidden_states": torch.randn(batch, 5, 10, generator=draw),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])[:batch],
    }


@torch.no_grad()
def test_text_with_and_without_the_axis_of_upstream_is_the_same() -> None:
    model, inputs = tiny(), tiny_inputs()
    upstream = inputs | {
        name: inputs[name].unsqueeze(1) for name in ("encoder_hidden_states", "encoder_attention_mask")
    }
    assert torch.equal(model(**inputs), model(**upstream))


@pytest.mark.numerical
@torch.no_grad()
def test_masked_text_does_not_reach_the_output_and_a_mask_of_ones_changes_nothing() -> None:
    model, inputs = tiny(), tiny_inputs()
    other = inputs["encoder_hidden_states"].clone()
    other[0, 3:] += 5
    assert_close(model(**inputs | {"encoder_hidden_states": other}), model(**inputs))
    ones = {"attention_mask": torch.ones(2, 3, 4, 6)}
    assert torch.equal(model(**inputs | ones), model(**inputs))


def test_few_keys_are_enough_and_unknown_ones_are_kept() -> None:
    model = OpenSoraT2V(TINY | {"decay": 0.999})
    assert model.config["decay"] == 0.999
    assert model.config["out_channels"] == 4
    assert model.token_grid((2, 4, 8, 16, 24)) == (8, 8, 12)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rope", False),
        ("norm_type", "layer_norm"),
        ("activation_fn", "geglu"),
        ("attention_bias", False),
        ("downsampler", "k333_s222"),
        ("patch_size_t", 2),
        ("norm_elementwise_affine", True),
        ("dropout", 0.1),
        ("attention_head_dim", 64),
        ("cross_attention_dim", 7),
        ("num_layers", 0),
        ("num_layers", "2"),
        ("num_attention_heads", True),
        ("sample_size", [8]),
        ("sample_size_t", -1),
        ("interpolation_scale_h", 0),
        ("interpolation_scale_w", "wide"),
        ("_class_name", "LatteT2V"),
    ],
)
def test_config_values_of_another_network_are_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(EvditError, match=key) as caught:
        OpenSoraT2V(TINY | {key: value})
    assert str(caught.value.where) == f"config.json {key}"


def test_latents_that_patches_do_not_tile_are_refused() -> None:
    inputs = tiny_inputs()
    inputs["hidden_states"] = inputs["hidden_states"][..., :5]
    with pytest.raises(EvditError, match="4 x 5 do not fit patches of 2 x 2"):
        tiny()(**inputs)


class Recorded:
    """A stand-in for a bound mask: dense attention that remembers what it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        self.shapes += [tuple(x.shape) for x in (q_BNHD, k_BNHD, v_BNHD)]
        scores = torch.einsum("bnhd,bmhd->bhnm", q_BNHD, k_BNHD) / q_BNHD.shape[-1] ** 0.5
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v_BNHD)


@pytest.mark.numerical
@torch.no_grad()
def test_a_site_calls_what_is_bound_to_it() -> None:
    model, inputs, bound = tiny(), tiny_inputs(), Recorded()
    dense = model(**inputs)
    model.transformer_blocks[1].attn1.attend = bound
    assert_close(model(**inputs), dense)
    assert bound.shapes == [(2, 18, 2, 12)] * 3


def test_a_bound_mask_and_a_padded_video_are_refused_together() -> None:
    model, inputs = tiny(), tiny_inputs()
    model.transformer_blocks[0].attn1.attend = Recorded()
    padded = torch.ones(2, 3, 4, 6)
    model(**inputs | {"attention_mask": padded})
    padded[0, ..., -2:] = 0
    with pytest.raises(EvditError, match="can't be combined"):
        model(**inputs | {"attention_mask": padded})


@pytest.mark.numerical
@torch.no_grad()
def test_masks_bound_on_sites_are_the_masked_softmax() -> None:
    model, inputs = tiny().double(), tiny_inputs(frames=4)
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    grid = VideoGrid(4, 2, 3)
    mask = TileMask(4, (0,))
    site = model.transformer_blocks[0].attn1
    case = Case(grid, 2, 12, 2, torch.float64, torch.device("cpu"), False)
    outputs = {}
    for name in (mask, TileMask.dense(4)):
        site.attend = bind(name, case)
        outputs[name] = model(**inputs)
    kept = torch.from_numpy(mask.token_mask(grid))

    def reference(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> Tensor:
        scores = torch.einsum("bnhd,bmhd->bhnm", q_BNHD, k_BNHD) / q_BNHD.shape[-1] ** 0.5
        return torch.einsum("bhnm,bmhd->bnhd", scores.masked_fill(~kept, -torch.inf).softmax(-1), v_BNHD)

    site.attend = reference
    assert_close(outputs[mask], model(**inputs))
    site.attend = None
    assert_close(outputs[TileMask.dense(4)], model(**inputs))
    assert (outputs[mask] - outputs[TileMask.dense(4)]).abs().max() > 0.01


def gradients(model: OpenSoraT2V) -> dict[str, Tensor]:
    model.zero_grad()
    model(**tiny_inputs()).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    model = tiny()
    plain = gradients(model)
    model.checkpoint_blocks = True
    again = gradients(model)
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name
        assert gradient.abs().max() > 0 or name.endswith("to_k.bias"), name


@pytest.mark.numerical
def test_bfloat16_autocast_trains_a_float32_model() -> None:
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**tiny_inputs())
        output.square().mean().backward()
    assert output.dtype is torch.float32
    assert_close(output, model(**tiny_inputs()), atol=0.15)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.numerical
def test_a_block_compiles_to_one_graph() -> None:
    model, inputs = tiny(), tiny_inputs()
    expected = model(**inputs)
    for block in model.transformer_blocks:
        block.compile(backend="eager", fullgraph=True)
    assert_close(model(**inputs), expected)


@torch.no_grad()
def test_rotary_tables_stay_float32_and_few() -> None:
    model = tiny().bfloat16()
    for frames in range(1, 8):
        model(**{name: x.bfloat16() if x.is_floating_point() else x for name, x in tiny_inputs(frames=frames).items()})
    assert 1 <= len(model._tables) <= 4
    assert {table.dtype for tables in model._tables.values() for table in tables} == {torch.float32}
    assert not any("table" in key and "scale_shift" not in key for key in model.state_dict())


def test_tables_made_while_sampling_serve_training() -> None:
    model, inputs = tiny(), tiny_inputs()
    with torch.inference_mode():
        model(**inputs)
    model(**inputs).mean().backward()


@pytest.mark.numerical
def test_initial_weights_follow_the_generator_and_predict_zero() -> None:
    models = [OpenSoraT2V(TINY) for _ in range(2)]
    for model in models:
        model.initialise(torch.Generator().manual_seed(5))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert models[0](**tiny_inputs()).abs().max() == 0
    assert all(block.attn2.to_out[0].weight.abs().max() > 0 for block in models[0].transformer_blocks)
    proj = first["pos_embed.proj.weight"].flatten(1)
    ends = (6 / sum(proj.shape)) ** 0.5
    assert -ends <= proj.min() < 0 < proj.max() <= ends
    assert all(value.abs().max() == 0 for key, value in first.items() if key.endswith("bias"))
    assert_close(first["adaln_single.linear.weight"].std(), 0.02, rtol=0.1)


@pytest.mark.parametrize("case", ["transformer-a", "transformer-b"])
def test_round_trip_keeps_config_and_weights(tmp_path: Path, case: str) -> None:
    model = OpenSoraT2V.from_pretrained(GOLDEN / case)
    assert not model.training
    model.save_pretrained(tmp_path, metadata={"plan": "none"})
    again = OpenSoraT2V.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == json.loads(
        (GOLDEN / case / "config.json").read_text(encoding="utf-8")
    )
    theirs = load_file(GOLDEN / case / "diffusion_pytorch_model.safetensors")
    ours = again.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[key], value.float()) for key, value in theirs.items())


@pytest.mark.numerical
@torch.no_grad()
def test_half_precision_on_disk_and_in_use(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path, dtype=torch.float16)
    size = (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size < 2.2 * sum(parameter.numel() for parameter in tiny().parameters())
    model = OpenSoraT2V.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert_close(model(**tiny_inputs()), tiny()(**tiny_inputs()), atol=0.15)
