import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_pipeline import (
    HEIGHT,
    TEXT_WIDTH,
    TRANSFORMER_CONFIG,
    VIDEO_FRAMES,
    WIDTH,
    copied,
    write_pipeline,
    write_published,
    write_text_encoder,
    write_transformer,
    write_vae,
)
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.open_sora_plan.loading import save_weights
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

PROMPT = "a large red circle moving right over black"
SHAPE = (4, 3, HEIGHT // 8, WIDTH // 8)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("ours") / "model")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return write_published(tmp_path_factory.mktemp("published") / "model", with_text=True)


def opened(folder, **options):
    return open_backbone(find_source(str(folder)), device="cpu", **options)


def latents(seed=0, batch=2):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def made(backbone):
    """Text states, prediction and video of fixed noise, each part resident when it is used."""
    with backbone.resident("text"):
        text = backbone.encode_text([PROMPT, "a blue square"])
    with backbone.resident("transformer"):
        output = backbone.denoise(latents(), torch.tensor([999, 500]), text)
    with backbone.resident("vae"):
        video = backbone.decode_video(output)
    return text.states_BLC, output, video


def refused(folder, code, says, **options):
    with pytest.raises(EvditError, match=says) as caught:
        opened(folder, **options)
    assert caught.value.exit_code == code, caught.value.text()
    return caught.value


# Opening


def test_our_folder_says_how_it_is_sampled(ours):
    backbone = opened(ours)
    assert (backbone.name, backbone.prediction) == ("tiny", "v")
    assert backbone.defaults.video_frames == VIDEO_FRAMES
    assert (backbone.defaults.steps, backbone.defaults.scheduler, backbone.defaults.negative) == (3, "ddim", "")
    assert backbone.scheduler_config["timestep_spacing"] == "trailing"
    assert backbone.latent_scale == 0.5
    assert backbone.parts.loaded == {}


def test_the_published_folder_is_sampled_as_its_repository_does(published):
    backbone = opened(published)
    assert (backbone.name, backbone.prediction) == ("open-sora-plan", "eps")
    assert backbone.latent_scale == 0.18215
    defaults = backbone.defaults
    assert (defaults.video_frames, defaults.height, defaults.width, defaults.fps) == (29, 720, 1280, 24)
    assert (defaults.steps, defaults.guidance, defaults.scheduler) == (100, 7.5, "euler-ancestral")
    assert defaults.prompt_template.format(prompt="x") == "(masterpiece), (best quality), (ultra-detailed), x."
    assert defaults.negative.startswith("nsfw, lowres") and defaults.negative.endswith("blurry")
    assert backbone.grid(29, 720, 1280) == VideoGrid(8, 45, 80)
    assert backbone.grid(93, 720, 1280).tokens == 86_400


@pytest.mark.parametrize(
    ("frames", "folder", "name"),
    [(None, "29x720p", "open-sora-plan"), (29, "29x720p", "open-sora-plan"), (93, "93x720p", "open-sora-plan-93")],
)
def test_the_published_folder_whose_size_fits_is_taken(published, frames, folder, name):
    backbone = opened(published, video_frames=frames)
    assert backbone.transformer_folder.name == folder
    assert backbone.name == name


def test_a_published_size_folder_may_be_named_itself(published):
    backbone = opened(published / "93x720p")
    assert (backbone.name, backbone.defaults.video_frames) == ("open-sora-plan-93", 93)


@pytest.mark.parametrize("layout", ["ours", "published"])
def test_all_parts_work_in_both_layouts(layout, request):
    backbone = opened(request.getfixturevalue(layout))
    states, output, video = made(backbone)
    assert states.shape[0] == 2 and states.shape[2] == TEXT_WIDTH
    assert output.shape == (2, *SHAPE)
    assert video.shape == (2, 3, VIDEO_FRAMES, HEIGHT, WIDTH)
    assert torch.isfinite(video).all() and video.abs().max() <= 1
    coded = backbone.encode_video(video)
    assert coded.shape == (2, *SHAPE)
    noisy = backbone.encode_video(video, torch.Generator().manual_seed(1))
    assert not torch.equal(coded, noisy)


def test_latents_are_scaled_by_the_vae_config(tmp_path, ours):
    other = copied(ours, tmp_path / "other")
    write_vae(other / "vae", scaling_factor=1.0)
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    half, whole = opened(ours).encode_video(video), opened(other).encode_video(video)
    torch.testing.assert_close(half, whole * 0.5)
    torch.testing.assert_close(opened(ours).decode_video(half), opened(other).decode_video(whole))


def test_predictions_depend_on_noise_time_and_text_and_have_gradients(ours):
    backbone = opened(ours)
    text = backbone.encode_text([PROMPT, "a blue square"])
    x, t = latents(), torch.tensor([900, 900])
    base = backbone.denoise(x, t, text)
    swapped = TextStates(text.states_BLC.flip(0), text.mask_BL.flip(0))
    assert not torch.allclose(base, backbone.denoise(x, t // 2, text))
    assert not torch.allclose(base, backbone.denoise(x, t, swapped))
    base.square().mean().backward()
    assert all(parameter.grad is not None for parameter in backbone.transformer.transformer_blocks.parameters())


# Sizes


@pytest.mark.parametrize(
    ("size", "flag", "steps"),
    [
        ((31, 32, 48), "--frames 31", ("--frames 29", "--frames 33")),
        ((32, 32, 48), "--frames 32", ("--frames 33", "--frames 29")),
        ((0, 32, 48), "--frames 0", ("--frames 1",)),
        ((-3, 32, 48), "--frames -3", ("--frames 1",)),
        ((9, 40, 48), "--height 40", ("--height 32", "--height 48")),
        ((9, 32, 5), "--width 5", ("--width 16",)),
        ((9, 0, 48), "--height 0", ("--height 16",)),
    ],
)
def test_sizes_that_do_not_fit_name_the_nearest(ours, size, flag, steps):
    with pytest.raises(EvditError) as caught:
        opened(ours).latent_shape(*size)
    assert caught.value.exit_code == USAGE
    assert caught.value.where == flag
    assert caught.value.next_steps == steps


def test_the_message_for_frames_is_the_one_of_the_manual(published):
    with pytest.raises(EvditError) as caught:
        opened(published).latent_shape(31, 720, 1280)
    assert caught.value.text() == (
        "error: 31 frames do not fit open-sora-plan: video frames must be 4k+1\n"
        "  from:  --frames 31\n"
        "  try:   --frames 29  or  --frames 33"
    )


def test_latent_shapes_and_grids(ours):
    backbone = opened(ours)
    assert backbone.latent_shape(29, 128, 160) == (4, 8, 16, 20)
    assert backbone.latent_shape(1, 16, 16) == (4, 1, 2, 2)
    assert backbone.grid(29, 128, 160) == VideoGrid(8, 8, 10)
    assert backbone.grid(29, 128, 160, text_tokens=7).tokens == 8 * 80 + 7


# Offload


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
import resource, sys, torch
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.registry import find_source, open_backbone

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

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


def test_bfloat16_is_close_to_float32(ours):
    exact, rough = made(opened(ours))[1], made_in_bfloat16(opened(ours, dtype="bfloat16"))
    assert rough.dtype == torch.bfloat16
    assert (exact - rough).abs().mean() < 0.05 * exact.abs().mean()


@torch.no_grad()
def made_in_bfloat16(backbone):
    text = backbone.encode_text([PROMPT, "a blue square"]).to(backbone.device, backbone.dtype)
    return backbone.denoise(latents().to(backbone.dtype), torch.tensor([999, 500]), text)


# Plans


def test_a_plan_binds_each_distinct_mask_once(ours):
    backbone = opened(ours)
    grid = backbone.grid(VIDEO_FRAMES, HEIGHT, WIDTH)
    dense, sparse = TileMask.dense(3), TileMask.from_stride(3, 2)
    plan = MaskPlan("tiny", grid, (dense, sparse))
    attends = backbone.apply_plan(plan, batch=2)
    assert [attend.mask for attend in attends] == [dense, sparse]
    assert [site.attend for site in backbone.attention_sites()] == list(attends)
    uniform = backbone.apply_plan(MaskPlan.uniform("tiny", grid, 2, sparse), batch=2)
    assert uniform[0] is uniform[1]


@pytest.mark.parametrize("offload", ["none", "model", "block"])
def test_a_plan_changes_the_output_and_outlives_offload(ours, offload):
    expected = made(opened(ours))[1]
    backbone = opened(ours, offload=offload)
    grid = backbone.grid(VIDEO_FRAMES, HEIGHT, WIDTH)
    backbone.apply_plan(MaskPlan.uniform("tiny", grid, 2, TileMask.dense(3)), batch=2)
    torch.testing.assert_close(made(backbone)[1], expected)
    backbone.apply_plan(MaskPlan.uniform("tiny", grid, 2, TileMask.from_stride(3, 3)), batch=2)
    sparse = made(backbone)[1]
    assert not torch.allclose(sparse, expected, atol=1e-4)
    assert torch.equal(made(backbone)[1], sparse)


def test_a_plan_for_another_model_is_refused(ours):
    backbone = opened(ours)
    grid = backbone.grid(VIDEO_FRAMES, HEIGHT, WIDTH)
    for plan in (
        MaskPlan.uniform("shapes", grid, 2, TileMask.dense(3)),
        MaskPlan.uniform("tiny", grid, 3, TileMask.dense(3)),
    ):
        with pytest.raises(EvditError):
            backbone.apply_plan(plan, batch=2)
    with pytest.raises(EvditError, match="kernel"):
        backbone.apply_plan(MaskPlan.uniform("tiny", grid, 2, TileMask.dense(3)), batch=2, kernel="magic")


# Checkpoints


def test_a_checkpoint_folder_takes_the_transformers_place(ours, tmp_path):
    write_transformer(tmp_path / "student", seed=5)
    backbone = opened(ours, checkpoint=str(tmp_path / "student"))
    assert backbone.lineage == ()
    assert backbone.weights_digest != opened(ours).weights_digest
    assert not torch.allclose(made(backbone)[1], made(opened(ours))[1])
    refused(ours, USAGE, "is no checkpoint", checkpoint=str(tmp_path / "absent"))


def test_vae_tiling_is_switched_on(ours):
    assert opened(ours, vae_tiling=True).vae.use_tiling
    assert not opened(ours).vae.use_tiling


# Bad folders


def edited(ours, target, **changes):
    folder = copied(ours, target)
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps(index | changes), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "WanPipeline"}, "names the pipeline 'WanPipeline'"),
        ({"transformer": ["evdit", "WanTransformer3DModel"]}, "unknown transformer class"),
        ({"vae": "vae"}, "vae is 'vae'"),
        ({"tokenizer": None}, "tokenizer is None"),
        ({"vae": ["../../elsewhere"]}, "must give it as"),
        ({"evdit": []}, '"evdit" in model_index.json'),
        ({"evdit": {"name": "x"}}, "defaults lack video_frames"),
        ({"evdit": {"name": "x", "defaults": {"framess": 3}}}, "unknown default 'framess'"),
        ({"evdit": {"name": "x", "defaults": {"fps": "many"}}}, "default fps is 'many'"),
        ({"evdit": {"name": "x", "defaults": {"steps": True}}}, "default steps is True"),
    ],
)
def test_a_bad_model_index_is_refused(ours, tmp_path, changes, says):
    error = refused(edited(ours, tmp_path / "bad", **changes), USAGE, says)
    assert "model_index.json" in (error.where or "")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_a_model_index_that_is_no_json_object_is_refused(ours, tmp_path, text):
    folder = copied(ours, tmp_path / "bad")
    (folder / "model_index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, USAGE, "model_index.json")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(ours, tmp_path, part):
    folder = copied(ours, tmp_path / "bad")
    (folder / part).rename(folder / f"not-{part}")
    assert str(folder / part) in refused(folder, ENVIRONMENT, f"the folder {part}/ is missing").text()


def test_a_prediction_that_is_unknown_is_refused(ours, tmp_path):
    folder = copied(ours, tmp_path / "bad")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "sample"}', encoding="utf-8")
    refused(folder, USAGE, "prediction type")


def test_parts_that_do_not_fit_each_other_are_refused(ours, tmp_path):
    folder = copied(ours, tmp_path / "bad")
    write_transformer(folder / "transformer", caption_channels=TEXT_WIDTH * 2)
    refused(folder, USAGE, "states of width 16")
    write_transformer(folder / "transformer", in_channels=8, out_channels=8)
    refused(folder, USAGE, "latents of 4 channels")
    write_transformer(folder / "transformer")
    write_vae(folder / "vae", scaling_factor=0)
    refused(folder, USAGE, "scaling_factor is 0")


def test_a_folder_without_a_model_is_refused(tmp_path):
    refused(tmp_path, USAGE, "is no model folder")


def test_a_published_folder_without_its_vae_or_text_encoder_is_refused(tmp_path):
    folder = write_published(tmp_path / "model", sizes=("29x720p",))
    error = refused(folder, ENVIRONMENT, "text encoder google/mt5-xxl")
    assert "--text-encoder google/mt5-xxl" in error.text()
    refused(folder, USAGE, "there is no text encoder folder", text_encoder=str(tmp_path / "absent"))
    write_text_encoder(tmp_path / "mt5", tmp_path / "mt5")
    assert made(opened(folder, text_encoder=str(tmp_path / "mt5")))[2].shape[2] == VIDEO_FRAMES
    (folder / "vae" / "config.json").unlink()
    refused(folder, ENVIRONMENT, "vae/config.json is missing", text_encoder=str(tmp_path / "mt5"))


@pytest.mark.parametrize("part", ["transformer", "vae"])
@pytest.mark.parametrize("offload", ["none", "block"])
def test_truncated_weights_are_named_when_they_are_read_or_counted(ours, tmp_path, part, offload):
    folder = copied(ours, tmp_path / "bad")
    file = folder / part / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    backbone = opened(folder, offload=offload)
    for action in (lambda: backbone.part_bytes(part), lambda: backbone.resident(part).__enter__()):
        with pytest.raises(EvditError) as caught:
            action()
        assert caught.value.exit_code == ENVIRONMENT
        assert file.name in caught.value.text()


def test_registered_weights_that_are_missing_are_listed(monkeypatch, tmp_path):
    monkeypatch.setattr("vdit_cli.backbones.sources.user_data_path", lambda *_, **__: tmp_path)
    with pytest.raises(EvditError, match="29x720p/diffusion_pytorch_model.safetensors") as caught:
        open_backbone(find_source("open-sora-plan"), device="cpu")
    assert caught.value.exit_code == ENVIRONMENT
    assert str(tmp_path) in caught.value.text()


def test_registered_weights_that_are_here_open_at_their_own_size(monkeypatch, tmp_path):
    monkeypatch.setattr("vdit_cli.backbones.sources.user_data_path", lambda *_, **__: tmp_path)
    root = tmp_path / "models" / "open-sora-plan-v1.2.0"
    write_published(root)
    write_text_encoder(tmp_path / "mt5", tmp_path / "mt5")
    for name, size in (("open-sora-plan", "29x720p"), ("open-sora-plan-93", "93x720p")):
        backbone = open_backbone(find_source(name), device="cpu", text_encoder=str(tmp_path / "mt5"))
        assert (backbone.name, backbone.transformer_folder) == (name, root / size)


# Devices


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"device": "gpu"}, USAGE, "unknown device"),
        ({"device": "meta"}, USAGE, "unknown device"),
        ({"dtype": "float8"}, USAGE, "unknown number format"),
        ({"offload": "disk"}, USAGE, "unknown offload"),
    ],
)
def test_unknown_choices_name_the_known_ones(ours, options, code, says):
    with pytest.raises(EvditError, match=says) as caught:
        open_backbone(find_source(str(ours)), **{"device": "cpu"} | options)
    assert caught.value.exit_code == code


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_absent_is_said(ours, device):
    with pytest.raises(EvditError, match=f"{device.split(':')[0]}.* was asked for") as caught:
        open_backbone(find_source(str(ours)), device=device)
    assert caught.value.exit_code == ENVIRONMENT
    assert "--device cpu" in caught.value.text()


def test_auto_is_the_cpu_in_float32_without_a_gpu(ours):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    backbone = open_backbone(find_source(str(ours)))
    assert (backbone.device.type, backbone.dtype) == ("cpu", torch.float32)
    assert TRANSFORMER_CONFIG["num_layers"] == backbone.layers == len(backbone.attention_sites())
    assert Path(backbone.transformer_folder).is_dir()
