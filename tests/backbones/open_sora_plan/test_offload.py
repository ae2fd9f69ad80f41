import math

import pytest
import torch

from tests.backbones.open_sora_plan.opened import PROMPT, latents, made, opened
from tests.closeness import assert_within
from tests.tensors import parameters_made
from tests.tiny_pipeline import copied
from vdit_cli.backbones.open_sora_plan.loading import save_weights, stored_shapes


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


@pytest.mark.parametrize("offload", ["none", "model", "block"])
def test_offload_frees_the_weights_that_are_not_in_use(ours, offload):
    """Bytes of parameters that are alive in each part's turn, with those of one block in the middle of it."""
    backbone = opened(ours, offload=offload)
    transformer, vae = backbone.part_bytes("transformer"), backbone.part_bytes("vae")
    shapes = stored_shapes(backbone.transformer_folder)
    blocks = sum(4 * math.prod(shape) for key, shape in shapes.items() if key.startswith("transformer_blocks."))
    text = opened(ours).encode_text([PROMPT, PROMPT])
    alive = []
    with torch.no_grad(), parameters_made() as alive_bytes:
        for _ in range(2):
            with backbone.resident("vae"):
                alive.append(alive_bytes())
            with backbone.resident("transformer"):
                second = backbone.transformer.transformer_blocks[1].attn1
                hook = second.register_forward_hook(lambda *_: alive.append(alive_bytes()))
                backbone.denoise(latents(), torch.tensor([5, 5]), text)
                hook.remove()
                del second
    expected = {
        "none": [vae, vae + transformer, vae + transformer, vae + transformer],
        "model": [vae, transformer, vae, transformer],
        "block": [vae, transformer - blocks // 2, vae, transformer - blocks // 2],
    }
    assert alive == expected[offload]


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
