"""The VAE's loss in closed form, and what is measured on unseen clips."""

from __future__ import annotations

import math

import pytest
import torch

from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.distillation.shapes_vae import (
    Autoencoder,
    measure_psnr,
    normalise_latents,
    reconstruction_terms,
    unseen_clips,
    vae_config,
)
from vdit_cli.recipe import ShapesVaeOptions

CPU = torch.device("cpu")


@pytest.fixture
def vae() -> CausalVAEModel:
    """A tiny VAE with random weights."""
    torch.manual_seed(0)
    return CausalVAEModel(vae_config(ShapesVaeOptions(hidden_size=8))).eval().requires_grad_(False)


def test_a_constant_error_has_no_edges():
    video = torch.rand(1, 3, 5, 8, 8)
    absolute, squared, edges = reconstruction_terms(video, video + 0.5)
    assert (absolute, squared, edges) == (pytest.approx(0.5), pytest.approx(0.25), pytest.approx(0, abs=1e-6))


def test_a_ramp_has_its_slope_as_edges():
    video = torch.zeros(1, 3, 5, 8, 8)
    ramp = 0.1 * torch.arange(8.0).expand(1, 3, 5, 8, 8)
    assert reconstruction_terms(video, ramp)[2] == pytest.approx(0.1)


def test_divergence_is_that_of_normal_distributions(vae: CausalVAEModel):
    """Against torch.distributions, for the posterior that the encoder gives."""
    model = Autoencoder(vae)
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    rebuilt, divergence = model(clip, torch.zeros(1, 4, 2, 2, 2))
    posterior = vae.encode(clip).latent_dist
    mine = torch.distributions.Normal(posterior.mean, torch.exp(0.5 * posterior.logvar))
    peer = torch.distributions.kl_divergence(mine, torch.distributions.Normal(0.0, 1.0)).mean()
    assert divergence == pytest.approx(peer.item(), rel=1e-4)
    assert torch.allclose(rebuilt, vae.decode(posterior.mean).sample, atol=1e-5)


def test_latents_of_unseen_clips_are_normal_after_folding(vae: CausalVAEModel):
    normalise_latents(vae, 3, CPU)
    means = torch.cat([vae.encode(clips).latent_dist.mean for _, clips in unseen_clips(3, CPU)])
    channels = means.transpose(0, 1).flatten(1)
    assert channels.mean(1).tolist() == pytest.approx([0] * 4, abs=1e-3)
    assert channels.std(1).tolist() == pytest.approx([1] * 4, rel=1e-3)


def test_psnr_is_taken_a_clip_and_by_motion(vae: CausalVAEModel):
    report = measure_psnr(vae, 3, CPU)
    expected, motions = [], []
    for names, clips in unseen_clips(3, CPU):
        rebuilt = vae.decode(vae.encode(clips).latent_dist.mean).sample.clamp(-1, 1)
        motions += names
        expected += [10 * math.log10(4 / (a - b).square().mean()) for a, b in zip(rebuilt, clips, strict=True)]
    assert report["all"] == pytest.approx(sum(expected) / 3, abs=1e-3)
    assert report["worst"] == pytest.approx(min(expected), abs=1e-3)
    assert set(report) == {"all", "worst", *motions}
