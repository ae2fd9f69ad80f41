"""Adapters: as PEFT computes them, in each format, at every offload, and refused where something would be skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.backbones.adapters import adapted_by_peft, pairs_in, write_diffusers, write_peft
from tests.backbones.open_sora_plan.opened import latents, made, opened
from tests.closeness import assert_close
from tests.tiny_pipeline import write_pipeline
from vdit_cli.backbones.lora import read_lora
from vdit_cli.backbones.open_sora_plan.loading import stored_shapes
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError

T = torch.tensor([999, 500])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline."""
    return write_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder of rank 4 and alpha 8."""
    return write_peft(tmp_path_factory.mktemp("peft") / "adapter", model / "transformer", lora_alpha=8)


def predicted(model: Path, lora: list[str], **options: object) -> Tensor:
    """What the tiny model predicts for fixed noise and words with these adapters."""
    return made(opened(model, lora=tuple(lora), **options))[1]


CONFIGS = [
    {"lora_alpha": 8},
    {"lora_alpha": 3, "use_rslora": True},
    {"r": 2, "lora_alpha": 2, "rank_pattern": {"to_q": 6, "proj": 3}, "alpha_pattern": {r"0\.attn1\.to_q": 5.0}},
]


@pytest.mark.numerical
@pytest.mark.parametrize("config", CONFIGS, ids=str)
@torch.no_grad()
def test_a_peft_folder_is_what_peft_computes(model: Path, tmp_path: Path, config: dict):
    """alpha / r, alpha / sqrt(r), and a rank and an alpha of its own for a layer."""
    folder = write_peft(tmp_path / "adapter", model / "transformer", **config)
    plain = opened(model)
    with plain.resident("text"):
        text = plain.encode_text(["a large red circle moving right over black", "a blue square"])
    peft = adapted_by_peft(model / "transformer", **config)
    expected = peft(latents(), T, text.states_BLC, text.mask_BL)
    assert_close(predicted(model, [str(folder)]), expected, atol=1e-3, rtol=1e-3, planted=predicted(model, []))


@pytest.mark.parametrize(
    "ends", [("lora_A", "lora_B"), ("lora_down", "lora_up"), ("lora.down", "lora.up")], ids=lambda ends: ends[0]
)
def test_diffusers_files_mean_the_same(model: Path, adapter: Path, tmp_path: Path, ends: tuple[str, str]):
    """Of each name of the matrices, with alphas; by a file's or its folder's path, and in PEFT's place of a student."""
    file = write_diffusers(tmp_path / "pytorch_lora_weights.safetensors", pairs_in(adapter), ends, alpha=8.0)
    same = predicted(model, [str(adapter)])
    assert torch.equal(predicted(model, [str(file)]), same)
    assert torch.equal(predicted(model, [str(tmp_path)]), same)
    assert torch.equal(predicted(model, [str(adapter / "adapter_model.safetensors")]), same)
    inner = tmp_path / "run" / "student" / "adapter"
    inner.parent.mkdir(parents=True)
    inner.symlink_to(adapter)
    assert torch.equal(predicted(model, [str(tmp_path / "run")]), same)


def test_diffusers_files_without_alpha(model: Path, adapter: Path, tmp_path: Path):
    """Then alpha is the rank, unless the file's metadata has PEFT's configuration."""
    ends = ("lora_A", "lora_B")
    shapes = stored_shapes(model / "transformer")
    bare = write_diffusers(tmp_path / "bare.safetensors", pairs_in(adapter), ends, None)
    config = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.use_rslora": True}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    told = write_diffusers(tmp_path / "told.safetensors", pairs_in(adapter), ends, None, metadata)
    factors = [{p.factor for p in read_lora(each, 1.0, shapes, "").pairs.values()} for each in (bare, told, adapter)]
    assert factors == [{1.0}, {4.0}, {2.0}]


@pytest.mark.numerical
@pytest.mark.parametrize("offload", ["none", "model", "block"])
def test_offload_reads_adapters_again(model: Path, adapter: Path, tmp_path: Path, offload: str):
    """The same each time, by blocks too; scales multiply, and several adapters add up."""
    expected = predicted(model, [str(adapter)])
    copy = write_diffusers(tmp_path / "same.safetensors", pairs_in(adapter), ("lora_A", "lora_B"), 8.0)
    backbone = opened(model, lora=(f"{adapter}:0.25", f"{copy}:0.75"), offload=offload)
    for _ in range(2):
        assert_close(made(backbone)[1], expected, atol=1e-3, rtol=1e-3, planted=predicted(model, []))
    if offload != "block":
        backbone.make_fast(compiled=False)
        assert_close(made(backbone)[1], expected, atol=1e-3, rtol=1e-3, planted=predicted(model, []))


@pytest.mark.numerical
def test_the_sum_is_rounded_once(model: Path, adapter: Path):
    """In bfloat16: the stored weight and the delta are added in float32, by the definition of an adapter."""
    pairs, name = pairs_in(adapter), "transformer_blocks.0.attn1.to_q"
    stored = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")[f"{name}.weight"]
    delta = 2.0 * pairs[f"{name}.lora_B.weight"].double() @ pairs[f"{name}.lora_A.weight"].double()
    backbone = opened(model, lora=(str(adapter),), dtype="bfloat16")
    with backbone.resident("transformer"):
        found = backbone.transformer.state_dict()[f"{name}.weight"]
        assert found.dtype == torch.bfloat16
        off = (found.double() - (stored.double() + delta)).norm() / delta.norm()
    assert_close(1 + off, 1.0, atol=5e-3, planted=2.0)


def test_weights_with_an_adapter_have_another_digest(model: Path, adapter: Path, tmp_path: Path):
    """By content and scale, not by path; plans hold for them by the plain weights in the lineage."""
    copy = write_diffusers(tmp_path / "same.safetensors", pairs_in(adapter), ("lora_A", "lora_B"), 8.0)
    plain = opened(model).weights_digest
    asked = ([str(adapter)], [f"{adapter}:0.5"], [f"{adapter}:2"], [str(adapter / "adapter_model.safetensors")])
    backbones = [opened(model, lora=tuple(each)) for each in asked]
    digests = [backbone.weights_digest for backbone in backbones]
    assert len({plain, *digests}) == 4 and digests[3] == digests[0]
    assert all(backbone.lineage == (plain,) for backbone in backbones) and opened(model).lineage == ()
    other = pairs_in(adapter)
    other["proj_out.lora_A.weight"] += 1
    changed = write_diffusers(tmp_path / "other.safetensors", other, ("lora_A", "lora_B"), 8.0)
    shapes = stored_shapes(model / "transformer")
    assert read_lora(copy, 1.0, shapes, "").digest != read_lora(changed, 1.0, shapes, "").digest


FIRST = "transformer.proj_out"
ODD: list[tuple[Callable[[dict], object], str]] = [
    (lambda all: all.pop(f"{FIRST}.lora_B.weight"), r"1 halves of pairs \(proj_out\)"),
    (lambda all: all.update({f"{FIRST}.lora_magnitude_vector": torch.ones(16)}), "1 keys that mean no pair"),
    (
        lambda all: all.update({"text_encoder.q.lora_A.weight": torch.ones(4, 4)}),
        r"1 unknown layers \(text_encoder.q\)",
    ),
    (lambda all: all.update({f"{FIRST}.lora_down.weight": torch.ones(4, 48)}), "names proj_out twice"),
    (lambda all: all.update({f"{FIRST}.lora_A.weight": torch.ones(4, 47)}), r"misshapen pairs \(proj_out .* 47\] for"),
    (lambda all: all.update({f"{FIRST}.lora_A.weight": torch.ones(3, 48)}), "misshapen pairs"),
    (lambda all: all.update({f"{FIRST}.alpha": torch.ones(2)}), "misshapen pairs"),
    (lambda all: all.clear(), "has no pairs"),
]


@pytest.mark.parametrize(("change", "says"), ODD, ids=[says for _, says in ODD])
def test_what_can_not_be_added_is_refused_by_name(
    model: Path, adapter: Path, tmp_path: Path, change: Callable[[dict], object], says: str
):
    """Nothing of a file is skipped without a word."""
    file = write_diffusers(tmp_path / "odd.safetensors", pairs_in(adapter), ("lora_A", "lora_B"), 8.0)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(EvditError, match=says) as caught:
        opened(model, lora=(str(file),))
    assert (caught.value.exit_code, caught.value.where) == (USAGE, f"--lora {file}")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"use_dora": True}, "use_dora True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"r": 8}, "pairs of rank 4 in .*, its configuration says 8"),
        ({"lora_alpha": "8"}, "lora_alpha '8': it must be a number above 0"),
        ({"alpha_pattern": {"to_q": 0}}, "alpha_pattern to_q 0"),
    ],
)
def test_configurations_that_mean_more_are_refused(model: Path, adapter: Path, tmp_path: Path, change: dict, says: str):
    content = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (tmp_path / "adapter_config.json").write_text(json.dumps(content | change), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").symlink_to(adapter / "adapter_model.safetensors")
    with pytest.raises(EvditError, match=says) as caught:
        opened(model, lora=(str(tmp_path),))
    assert caught.value.exit_code == USAGE


def test_places_without_an_adapter(model: Path, adapter: Path, tmp_path: Path):
    """Nothing there, an empty folder, another kind of file, an odd scale; a file that is cut short is damaged."""
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((adapter / "adapter_model.safetensors").read_bytes()[:-1])
    for asked, says, code in (
        (tmp_path / "nowhere", "is not there", USAGE),
        (tmp_path, "holds no adapter_config.json", USAGE),
        (tmp_path / "adapter_model.bin", "is no safetensors file", USAGE),
        (f"{adapter}:nan", "scale is nan", USAGE),
        (f"{adapter}:half", "is not there", USAGE),
        (cut, "cut.safetensors is damaged", ENVIRONMENT),
    ):
        with pytest.raises(EvditError, match=says) as caught:
            opened(model, lora=(str(asked),))
        assert caught.value.exit_code == code
