"""The causal video VAE against golden vectors of the original code, closed forms and its own contract."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributions import Normal, kl_divergence

from tests.backbones.open_sora_plan.vae_models import GOLDEN, golden_config, random_video, shapes_config, tiny
from tests.closeness import assert_close, assert_within
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel, Posterior
from vdit_cli.errors import EvditError

CALLS = [("vae-a", 0), ("vae-a", 1), ("vae-a", 2), ("vae-a", 3), ("vae-b", 0), ("vae-b", 1), ("vae-b", 2)]


@pytest.mark.numerical
@pytest.mark.parametrize(("case", "call"), CALLS)
def test_the_original_results_are_reproduced(case, call):
    vae = CausalVAEModel.from_pretrained(GOLDEN / case)
    facts = json.loads((GOLDEN / case / "case.json").read_text(encoding="utf-8"))
    tolerance = facts["suggested_tolerance"]
    assert len(facts["calls"]) == sum(known == case for known, _ in CALLS)
    prefix = f"call{call}."
    vectors = load_file(GOLDEN / case / "vectors.safetensors")
    stored = {key.removeprefix(prefix): value for key, value in vectors.items() if key.startswith(prefix)}
    tiling = facts["calls"][call]["tiling"]
    if tiling:
        vae.enable_tiling()
        for attribute, value in tiling.items():
            assert hasattr(vae, attribute)
            setattr(vae, attribute, value)
    with torch.no_grad():
        posterior = vae.encode(stored["video"]).latent_dist
        assert_close(posterior.mean, stored["posterior_mean"], **tolerance)
        assert_close(posterior.logvar, stored["posterior_logvar"], **tolerance)
        assert_close(vae.decode(stored["latent"]).sample, stored["decoded_latent"], **tolerance)
        if not tiling:
            rebuilt = vae.decode(stored["posterior_mean"]).sample
            assert_close(rebuilt, stored["reconstruction_of_mean"], **tolerance)


def test_the_embedded_config_has_the_size_and_the_latents_of_the_design():
    vae = CausalVAEModel(shapes_config()).eval()
    assert sum(parameter.numel() for parameter in vae.parameters()) == 6_548_839
    with torch.no_grad():
        latents = vae.encode(random_video(29, 128, 128)).latent_dist.mean
    assert latents.shape == (1, 4, 8, 16, 16)
    assert (vae.time_ratio, vae.space_ratio) == (4, 8)


@pytest.mark.parametrize("frames", [1, 2, 5, 6, 9])
def test_every_number_of_frames_is_encoded_and_whole_groups_come_back(frames):
    vae = tiny()
    with torch.no_grad():
        latents = vae.encode(random_video(frames, 16, 24)).latent_dist.mode()
        video = vae.decode(latents).sample
    assert latents.shape == (1, 4, 1 + (frames - 1) // 4, 2, 3)
    assert video.shape == (1, 3, 1 + 4 * (latents.shape[2] - 1), 16, 24)


@pytest.mark.numerical
def test_each_video_of_a_batch_is_coded_by_itself():
    vae = tiny()
    videos = random_video(5, 16, 16, batch=3)
    with torch.no_grad():
        together = vae.decode(vae.encode(videos).latent_dist.mean).sample
        alone = [vae.decode(vae.encode(video[None]).latent_dist.mean).sample for video in videos]
    assert_close(together, torch.cat(alone))


def test_memory_format_of_the_input_does_not_matter():
    vae = tiny()
    video = random_video(5, 16, 16)
    with torch.no_grad():
        plain = vae.encode(video).latent_dist.mean
        turned = vae.encode(video.to(memory_format=torch.channels_last_3d)).latent_dist.mean
    assert torch.equal(plain, turned)


def test_a_saved_model_comes_back_with_its_unknown_keys(tmp_path):
    vae = tiny(note="kept", _diffusers_version="0.28.0")
    vae.save_pretrained(tmp_path)
    again = CausalVAEModel.from_pretrained(tmp_path)
    assert again.config == vae.config
    assert again.config["note"] == "kept"
    assert not again.training
    state = vae.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    vae.save_pretrained(tmp_path, dtype=torch.float16)
    halved = CausalVAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}


def test_a_missing_key_is_named(tmp_path):
    vae = tiny()
    del vae.decoder.up[1].upsample
    vae.save_pretrained(tmp_path)
    with pytest.raises(EvditError, match=r"decoder\.up\.1\.upsample\.conv\.conv\.weight"):
        CausalVAEModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("q_conv", "CausalConv2d", "CausalConv3d"),
        ("encoder_conv_in", "Conv3d", "Conv2d"),
        ("encoder_attention", "AttnBlock2D", "AttnBlock3D"),
        ("decoder_mid_resnet", "ResnetBlock", "ResnetBlock3D"),
        ("encoder_spatial_downsample", ["Down", "", "", ""], "Downsample"),
        ("decoder_temporal_upsample", ["", "TimeUpsample", "", ""], "TimeUpsample2x"),
    ],
)
def test_an_unknown_layer_is_refused_with_the_nearest(key, value, told):
    with pytest.raises(EvditError) as refused:
        CausalVAEModel(shapes_config(**{key: value}))
    assert key in refused.value.where or "encoder_*" in refused.value.where
    assert told in refused.value.next_steps


def test_a_list_of_the_wrong_length_and_unfit_groups_are_refused():
    with pytest.raises(EvditError, match="one a level"):
        CausalVAEModel(shapes_config(decoder_resnet_blocks=["ResnetBlock3D"]))
    with pytest.raises(EvditError, match="must divide"):
        CausalVAEModel(shapes_config(norm_num_groups=7))


def test_every_layer_name_builds_and_runs():
    space = ["Downsample", "SpatialDownsample2x", "Spatial2xTime2x3DDownsample", ""]
    vae = tiny(
        encoder_spatial_downsample=space,
        encoder_temporal_downsample=["TimeDownsample2x", "TimeDownsampleRes2x", "", ""],
        encoder_attention="AttnBlock",
        attn_resolutions=[32],
        decoder_spatial_upsample=["", "Upsample", "SpatialUpsample2x", "Spatial2xTime2x3DUpsample"],
        decoder_temporal_upsample=["", "TimeUpsample2x", "TimeUpsampleRes2x", ""],
        q_conv="Conv2d",
    )
    assert len(vae.encoder.down[2].attn) == 1
    assert len(vae.decoder.up[2].attn) == 2
    assert (vae.time_ratio, vae.space_ratio) == (8, 8)
    with torch.no_grad():
        latents = vae.encode(random_video(9, 16, 16)).latent_dist.mean
        assert latents.shape == (1, 4, 2, 2, 2)
        assert vae.decode(latents).sample.shape == (1, 3, 9, 16, 16)


def test_a_vae_without_quantisation_layers_runs_and_can_not_be_folded():
    vae = tiny(use_quant_layer=False)
    with torch.no_grad():
        assert vae.decode(vae.encode(random_video(5, 16, 16)).latent_dist.mean).sample.shape == (1, 3, 5, 16, 16)
    with pytest.raises(EvditError, match="use_quant_layer"):
        vae.fold_latent_scale(torch.zeros(4), torch.ones(4))


def _without_norms(vae: CausalVAEModel) -> CausalVAEModel:
    """The same VAE in float64 with its norms, the only layers with statistics over frames, taken out."""
    for module in vae.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    return vae.double()


def _reach(run, x_BCThw: torch.Tensor) -> list[list[int]]:
    """For each frame of the result the frames of the input that it depends on, by the gradient."""
    x_BCThw = x_BCThw.double().requires_grad_()
    out = run(x_BCThw)
    reach = []
    for frame in range(out.shape[2]):
        (grad,) = torch.autograd.grad(out[:, :, frame].square().sum(), x_BCThw, retain_graph=True)
        reach.append(grad.abs().amax(dim=(0, 1, 3, 4)).nonzero().flatten().tolist())
    return reach


def test_latent_frames_see_no_later_frame():
    vae = _without_norms(tiny())
    reach = _reach(lambda x: vae.encode(x).latent_dist.mean, random_video(13, 16, 16))
    assert [max(frames) for frames in reach] == [0, 4, 8, 12]


def test_decoded_frames_see_at_most_half_a_frame_ahead_at_each_doubling():
    vae = _without_norms(tiny())
    latents = torch.randn(1, 4, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    reach = _reach(lambda z: vae.decode(z).sample, latents)

    def source(frame: int, frames: int) -> int:
        # Doubled frames 2i - 1 and 2i stand a quarter of a frame before and after frame i, which interpolation mixes.
        return min(1 + frame // 2, frames - 1) if frame else 0

    assert [max(frames) for frames in reach] == [source(source(frame, 9), 5) for frame in range(17)]


@pytest.mark.numerical
@pytest.mark.parametrize("case", ["vae-a", "vae-b"])
def test_folding_the_latent_scale_is_exact(case):
    vae = CausalVAEModel.from_pretrained(GOLDEN / case, dtype=torch.float64)
    channels = golden_config(case)["embed_dim"]
    mean = torch.linspace(-0.7, 0.9, channels, dtype=torch.float64)
    std = torch.linspace(0.2, 3.0, channels, dtype=torch.float64)
    folded = copy.deepcopy(vae)
    folded.fold_latent_scale(mean, std)
    mean_BCFhw, std_BCFhw = mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
    video = random_video(5, 16, 16).double()
    with torch.no_grad():
        before, after = vae.encode(video).latent_dist, folded.encode(video).latent_dist
        assert_close(after.mean, (before.mean - mean_BCFhw) / std_BCFhw)
        assert_close(after.logvar, before.logvar - 2 * std_BCFhw.log())
        assert_close(folded.decode(after.mean).sample, vae.decode(before.mean).sample)
    assert vae.state_dict().keys() == folded.state_dict().keys()


@pytest.mark.numerical
def test_folding_scales_and_shifts_2d_quantisation_layers_too():
    vae = tiny(q_conv="Conv2d")
    video = random_video(1, 16, 16)
    with torch.no_grad():
        before = vae.encode(video).latent_dist.mean
        vae.fold_latent_scale(torch.full((4,), 0.5), torch.full((4,), 2.0))
        assert_close(vae.encode(video).latent_dist.mean, (before - 0.5) / 2)


def test_gradients_reach_every_weight_and_the_video():
    vae = tiny().train()
    video = random_video(5, 16, 16).requires_grad_()
    posterior = vae.encode(video).latent_dist
    loss = (vae.decode(posterior.sample()).sample - video).abs().mean() + posterior.kl().mean()
    loss.backward()
    # One bias has no gradient by nature: the same number added to each key leaves the softmax as it is.
    dead = [name for name, p in vae.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(name.endswith("attn_1.k.conv.bias") for name in dead), dead
    assert video.grad.isfinite().all()


@pytest.mark.numerical
def test_gradients_agree_with_finite_differences():
    vae = tiny().double()
    latents = torch.randn(1, 4, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: vae.decode(z).sample, (latents,), fast_mode=True)
    video = random_video(2, 8, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: vae.encode(x).latent_dist.mean, (video,), fast_mode=True)


def test_results_are_the_same_with_and_without_gradients():
    vae = tiny()
    latents = torch.randn(1, 4, 2, 2, 2)
    with torch.no_grad():
        quiet = vae.decode(latents).sample
    assert torch.equal(vae.decode(latents).sample, quiet)


@pytest.mark.numerical
def test_bfloat16_stays_close_to_float32():
    """Of the variance, latents and video lose half a per cent at most: bfloat16 has two digits, and layers are many."""
    torch.manual_seed(0)
    vae = CausalVAEModel(shapes_config(hidden_size=16)).eval()
    video, latents = random_video(5, 32, 32), torch.randn(1, 4, 2, 4, 4)

    def made(model: CausalVAEModel, frames: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        moved = (x.roll(frames, 2).to(dtype) for x in (video, latents))
        return [model.encode(next(moved)).latent_dist.mean, model.decode(next(moved)).sample]

    with torch.no_grad():
        exact, shifted = made(vae), made(vae, frames=1)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = made(vae)
        pure = made(copy.deepcopy(vae).bfloat16(), dtype=torch.bfloat16)
    for rough in (mixed, pure):
        assert rough[1].dtype == torch.bfloat16
        for true, near, far in zip(exact, rough, shifted, strict=True):
            lost = [((x.float() - true).var() / true.var()).item() for x in (near, far)]
            assert_within(lost[0], 0.005, planted=lost[1], told="a frame shifted")


@pytest.mark.numerical
def test_training_compiles_to_one_graph():
    vae = tiny().train()
    plain = copy.deepcopy(vae)
    video, noise = random_video(5, 16, 16), torch.randn(1, 4, 2, 2, 2)

    def loss_of(model: CausalVAEModel) -> torch.Tensor:
        posterior = model.encode(video).latent_dist
        latents = posterior.mean + torch.exp(0.5 * posterior.logvar) * noise
        return (model.decode(latents).sample - video).square().mean() + 1e-3 * posterior.kl().mean()

    torch.compile(loss_of, fullgraph=True, backend="aot_eager")(vae).backward()
    loss_of(plain).backward()
    ours, theirs = ({name: p.grad for name, p in model.named_parameters()} for model in (vae, plain))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-3, planted={name: 2 * x for name, x in theirs.items()})


@pytest.mark.numerical
def test_the_posterior_is_a_clamped_diagonal_gaussian():
    moments = torch.randn(2, 6, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 40
    posterior = Posterior(moments)
    assert torch.equal(posterior.mode(), moments[:, :3])
    assert posterior.logvar.min() == -30
    assert posterior.logvar.max() == 20
    narrow = Posterior(moments / 40)
    expected = kl_divergence(Normal(narrow.mean, narrow.logvar.mul(0.5).exp()), Normal(0.0, 1.0)).sum((1, 2, 3, 4))
    assert_close(narrow.kl(), expected)


@pytest.mark.numerical
def test_samples_follow_the_generator_and_the_deviation():
    moments = torch.zeros(1, 2, 4, 64, 64)
    moments[:, 1] = 2 * math.log(3.0)
    posterior = Posterior(moments)
    first, second = (posterior.sample(torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, posterior.sample(torch.Generator().manual_seed(6)))
    assert_close(first.std(), 3.0, rtol=0.05)
