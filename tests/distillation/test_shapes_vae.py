"""The VAE's loss in closed form, and what is measured on unseen clips."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.distillation.shapes_vae import (
    Autoencoder,
    measure_psnr,
    normalise_latents,
    reconstruction_terms,
    unseen_clips,
    vae_config,
)
from vdit_cli.distillation.train_shapes import check_channels
from vdit_cli.errors import EvditError
from vdit_cli.recipe_training import ShapesVaeOptions

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")


@pytest.fixture
def vae() -> CausalVAEModel:
    """A tiny VAE with random weights."""
    torch.manual_seed(0)
    return CausalVAEModel(vae_config(ShapesVaeOptions(hidden_size=8))).eval().requires_grad_(False)


def test_a_constant_error_has_no_edges():
    video = torch.rand(1, 3, 5, 8, 8)
    assert_close(torch.stack(reconstruction_terms(video, video + 0.5)), torch.tensor([0.5, 0.25, 0]), atol=1e-5)


def test_a_ramp_has_its_slope_as_edges():
    video = torch.zeros(1, 3, 5, 8, 8)
    ramp = 0.1 * torch.arange(8.0).expand(1, 3, 5, 8, 8)
    assert_close(reconstruction_terms(video, ramp)[2], 0.1)


def test_divergence_is_that_of_normal_distributions(vae: CausalVAEModel):
    """Against torch.distributions, for the posterior that the encoder gives."""
    model = Autoencoder(vae)
    clip = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    rebuilt, divergence = model(clip, torch.zeros(1, 4, 2, 2, 2))
    posterior = vae.encode(clip).latent_dist
    mine = torch.distributions.Normal(posterior.mean, torch.exp(0.5 * posterior.logvar))
    peer = torch.distributions.kl_divergence(mine, torch.distributions.Normal(0.0, 1.0)).mean()
    assert_close(divergence, peer.item(), rtol=1e-4)
    assert_close(rebuilt, vae.decode(posterior.mean).sample)


def test_latents_of_unseen_clips_are_normal_after_folding(vae: CausalVAEModel):
    def moments() -> list[torch.Tensor]:
        means = torch.cat([vae.encode(clips).latent_dist.mean for _, clips in unseen_clips(3, CPU)])
        channels = means.transpose(0, 1).flatten(1)
        return [channels.mean(1), channels.std(1)]

    before = moments()
    normalise_latents(vae, 3, CPU)
    assert_close(moments(), [torch.zeros(4), torch.ones(4)], atol=1e-3, planted=before)


def test_psnr_is_taken_a_clip_and_by_motion(vae: CausalVAEModel):
    report = measure_psnr(vae, 3, CPU)
    expected, motions = [], []
    for names, clips in unseen_clips(3, CPU):
        rebuilt = vae.decode(vae.encode(clips).latent_dist.mean).sample.clamp(-1, 1)
        motions += names
        expected += [10 * math.log10(4 / (a - b).square().mean()) for a, b in zip(rebuilt, clips, strict=True)]
    assert_close(report["all"], sum(expected) / 3, atol=1e-3)
    assert_close(report["worst"], min(expected), atol=1e-3)
    assert set(report) == {"all", "worst", *motions}


@pytest.mark.parametrize("multiples", [(1, 2, 3, 3), (2, 2, 2, 2), (1, 1, 1, 2)])
@pytest.mark.parametrize("width", [4, 6, 8])
@pytest.mark.parametrize("groups", [2, 4, 8])
def test_channels_are_refused_where_no_autoencoder_has_them(multiples: tuple[int, ...], width: int, groups: int):
    """And only there."""
    options = ShapesVaeOptions(hidden_size=width, hidden_size_mult=multiples, norm_groups=groups)

    def is_refused(attempt: Callable[[], object]) -> bool:
        try:
            attempt()
        except EvditError:
            return True
        return False

    with torch.device("meta"):
        assert is_refused(lambda: check_channels(options)) == is_refused(lambda: CausalVAEModel(vae_config(options)))
