import json

import pytest

from tests.backbones.open_sora_plan.opened import made, opened, refused
from tests.tiny_pipeline import (
    SCHEDULER_CONFIG,
    TEXT_WIDTH,
    VIDEO_FRAMES,
    copied,
    write_published,
    write_text_encoder,
    write_transformer,
    write_vae,
)
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError


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
        ({"evdit": {"name": "x"}}, "video_frames is missing: a model's defaults needs it"),
        ({"evdit": {"name": "x", "defaults": {"framess": 3}}}, "unknown key 'framess'"),
        ({"evdit": {"name": "x", "defaults": {"fps": "many"}}}, "fps is 'many': it must be a whole number"),
        ({"evdit": {"name": "x", "defaults": {"steps": True}}}, "steps is true: it must be a whole number"),
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


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("prediction_type", "sample", "'sample': it must be 'epsilon', 'v_prediction' or 'flow_prediction'"),
        ("beta_schedule", "squared", "beta_schedule is 'squared': it must be 'linear' or 'scaled_linear'"),
        ("timestep_spacing", "random", "timestep_spacing is 'random': it must be 'leading', 'linspace' or 'trailing'"),
        ("steps_offset", 1_000_000, "steps_offset is 1000000: it must be a whole number of at most 999"),
        ("steps_offset", -1, "steps_offset is -1"),
        ("steps_offset", True, "steps_offset is true"),
        ("num_train_timesteps", 10**9, "num_train_timesteps is 1000000000"),
        ("num_train_timesteps", 0, "num_train_timesteps is 0"),
        ("beta_end", 1, "beta_end is 1: it must be a number below 1"),
        ("shift", 0, "shift is 0: it must be a number above 0"),
        ("trained_betas", [0.1], r"trained_betas is \[0.1\]: it must be null"),
        ("rescale_betas_zero_snr", True, "rescale_betas_zero_snr is true: it must be false or null"),
    ],
)
def test_a_schedule_that_is_none_is_refused_with_file_and_key(ours, tmp_path, key, value, says):
    folder = copied(ours, tmp_path / "bad")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**SCHEDULER_CONFIG, key: value}), encoding="utf-8")
    own = "" if value == 1_000_000 else f" {key}"  # what two keys say together is told of the file
    assert refused(folder, USAGE, says).where == f"{file}{own}"


@pytest.mark.parametrize("value", [0, -1, True, "1"])
def test_a_latent_scale_that_is_none_is_refused(ours, tmp_path, value):
    folder = copied(ours, tmp_path / "bad")
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"scaling_factor": value}))
    error = refused(folder, USAGE, f"scaling_factor is {value!r}: it must be a number above 0")
    assert error.where == str(file)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("vae", "hidden_act", "zzz"), ("text_encoder", "hidden_act", "zzz"), ("text_encoder", "feed_forward_proj", "zzz")],
)
def test_an_activation_that_is_none_is_refused(ours, tmp_path, part, key, value):
    folder = copied(ours, tmp_path / "bad")
    file = folder / part / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("dense_act_fn", None)
    file.write_text(json.dumps({**config, key: value}), encoding="utf-8")
    with pytest.raises(EvditError, match="activation 'zzz'") as caught:
        opened(folder).part_bytes("text")
    assert f"{part}/config.json" in caught.value.where and caught.value.exit_code == USAGE


def test_a_feed_forward_layer_that_is_none_is_refused(ours, tmp_path):
    folder = copied(ours, tmp_path / "bad")
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "feed_forward_proj": 3}), encoding="utf-8")
    with pytest.raises(EvditError, match="config is none: .*feed_forward_proj") as caught:
        opened(folder).part_bytes("text")
    assert (caught.value.where, caught.value.exit_code) == (str(file), ENVIRONMENT)


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


def test_a_size_that_its_authors_sample_at_another_guidance(tmp_path):
    folder = write_published(tmp_path / "model", sizes=("29x480p", "29x720p", "93x480p"), with_text=True)
    for size, guidance in (("29x480p", 2.5), ("29x720p", 7.5), ("93x480p", 7.5)):
        assert opened(folder / size).defaults.guidance == guidance
