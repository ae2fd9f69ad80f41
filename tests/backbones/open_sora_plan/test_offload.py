import subprocess
import sys

import pytest
import torch

from tests.backbones.open_sora_plan.opened import PROMPT, latents, made, opened
from tests.closeness import assert_within
from tests.tiny_pipeline import (
    copied,
    write_transformer,
    write_vae,
)
from vdit_cli.backbones.open_sora_plan.loading import save_weights


@pytest.mark.parametrize("layout", ["ours", "published"])
def test_offload_changes_no_number(layout, request):
    folder = request.getfixturevalue(layout)
    expected = made(opened(folder))
    for offload in ("model", "block"):
        backbone = opened(folder, offload=offload)
        for _ in range(2):
            for mine, theirs in zip(made(backbone), expected, strict=True):
                assert torch.equal(mine, theirs)


def test_without_offload_parts_are_loaded_once_and_text_goes_before_denoising(ours):
    backbone = opened(ours)
    with backbone.resident("text"):
        assert set(backbone.parts.loaded) == {"text"}
    with backbone.resident("transformer"):
        assert set(backbone.parts.loaded) == {"transformer"}
    transformer = backbone.transformer
    with backbone.resident("vae"):
        assert set(backbone.parts.loaded) == {"transformer", "vae"}
    assert backbone.transformer is transformer


@pytest.mark.parametrize("offload", ["model", "block"])
def test_with_offload_one_part_is_in_memory(ours, offload):
    backbone = opened(ours, offload=offload)
    for part in ("text", "transformer", "vae", "transformer"):
        with backbone.resident(part):
            assert set(backbone.parts.loaded) == {part}


def test_a_part_in_use_is_never_taken_away(ours):
    backbone = opened(ours, offload="model")
    with backbone.resident("transformer"):
        transformer = backbone.transformer
        with backbone.resident("vae"):
            assert set(backbone.parts.loaded) == {"transformer", "vae"}
        assert backbone.transformer is transformer
    with backbone.resident("vae"):
        assert set(backbone.parts.loaded) == {"vae"}


def test_blocks_hold_weights_only_while_they_run(ours):
    backbone = opened(ours, offload="block")
    blocks = backbone.transformer.transformer_blocks
    seen = []

    def held(*_):
        seen.append([all(p.device.type == "cpu" for p in block.parameters()) for block in blocks])

    for block in blocks:
        block.attn1.register_forward_hook(held)
    text = opened(ours).encode_text([PROMPT, "a blue square"])
    with torch.no_grad():
        backbone.denoise(latents(), torch.tensor([999, 500]), text)
    assert seen == [[True, False], [False, True]]
    assert all(parameter.is_meta for block in blocks for parameter in block.parameters())


def test_blocks_are_streamed_from_shards_too(ours, tmp_path):
    sharded = copied(ours, tmp_path / "sharded")
    model = opened(ours).transformer
    save_weights(model, sharded / "transformer", model.config, max_shard_bytes=100_000)
    assert len(list((sharded / "transformer").glob("*.safetensors"))) > 2
    expected = made(opened(ours))[1]
    for offload in ("none", "block"):
        assert torch.equal(made(opened(sharded, offload=offload))[1], expected)
    assert opened(sharded).weights_digest == opened(ours).weights_digest


PEAK = """
import sys, torch
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.registry import find_source, open_backbone

def peak():
    # Not getrusage: its peak is handed down from the process that started this one.
    line = next(line for line in open("/proc/self/status", encoding="ascii") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

backbone = open_backbone(find_source(sys.argv[1]), device="cpu", offload=sys.argv[2])
text = TextStates(torch.randn(1, 4, 16), torch.ones(1, 4, dtype=torch.long))
before = peak()
with torch.no_grad():
    with backbone.resident("vae"):
        x = backbone.encode_video(torch.zeros(1, 3, 1, 16, 16))
    with backbone.resident("transformer"):
        x = backbone.denoise(x, torch.tensor([5]), text)
        x = backbone.denoise(x, torch.tensor([5]), text)
    with backbone.resident("vae"):
        backbone.decode_video(x)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak as Linux tells it")
def test_offload_lowers_the_peak_of_the_process(ours, tmp_path):
    folder = copied(ours, tmp_path / "larger")
    write_transformer(folder / "transformer", num_layers=8, num_attention_heads=16, cross_attention_dim=384)
    write_vae(folder / "vae", hidden_size=128)
    backbone = opened(folder)
    transformer, vae = backbone.part_bytes("transformer"), backbone.part_bytes("vae")
    peaks = {}
    for offload in ("none", "model", "block"):
        command = [sys.executable, "-c", PEAK, str(folder), offload]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr
        peaks[offload] = int(done.stdout)
    assert peaks["none"] > transformer + vae
    assert peaks["model"] < peaks["none"] - 0.7 * vae
    assert peaks["block"] < peaks["model"] - 0.3 * (transformer - vae)


def test_part_bytes_are_those_that_loading_takes(ours):
    for dtype in ("float32", "bfloat16"):
        backbone = opened(ours, dtype=dtype)
        for part, module in (("transformer", backbone.transformer), ("vae", backbone.vae)):
            assert backbone.part_bytes(part) == sum(p.numel() * p.element_size() for p in module.parameters())
        assert backbone.part_bytes("text") > 0


@pytest.mark.numerical
def test_bfloat16_is_close_to_float32(ours):
    exact, rough = made(opened(ours))[1], made_in_bfloat16(opened(ours, dtype="bfloat16"))
    assert rough.dtype == torch.bfloat16
    errors = [((x - exact).abs().mean() / exact.abs().mean()).item() for x in (rough, exact.roll(1, 2))]
    assert_within(errors[0], 0.05, planted=errors[1], told="a frame shifted")


@torch.no_grad()
def made_in_bfloat16(backbone):
    text = backbone.encode_text([PROMPT, "a blue square"]).to(backbone.device, backbone.dtype)
    return backbone.denoise(latents().to(backbone.dtype), torch.tensor([999, 500]), text)
