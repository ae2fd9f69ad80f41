"""Tiled coding: what commutes with tiles comes back whole, tiles stay small, and unfit tiles are refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backbones.open_sora_plan.vae_models import TILE_ATTRIBUTES, random_video, tiny
from tests.closeness import assert_close
from vdit_cli.backbones.open_sora_plan.vae_tiling import Tiling, run_tiled
from vdit_cli.errors import EvditError


def _grow(z_BCFhw: torch.Tensor) -> torch.Tensor:
    """A decoder that commutes with tiles: pixels doubled, each frame but the first doubled."""
    frames = torch.cat([z_BCFhw[:, :, :1], z_BCFhw[:, :, 1:].repeat_interleave(2, dim=2)], dim=2)
    return F.interpolate(frames, scale_factor=(1, 2, 2), mode="nearest")


def _shrink(x_BCTHW: torch.Tensor) -> torch.Tensor:
    return x_BCTHW[:, :, ::2, ::2, ::2].clone()


@pytest.mark.numerical
@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 12),
    st.integers(1, 11),
    st.integers(1, 11),
    st.sampled_from([(4, 0.25), (4, 0.5), (8, 0.125), (4, 0.0)]),
    st.integers(2, 5),
)
def test_what_commutes_with_tiles_comes_back_whole(frames, height, width, tile, tile_frames):
    size, overlap = tile
    z = torch.randn(1, 2, frames, height, width, dtype=torch.float64)
    grown = _grow(z)
    assert_close(run_tiled(_grow, z, Tiling.of(size, tile_frames, 2 * size, overlap)), grown)
    back = Tiling.of(2 * size, 2 * tile_frames - 1, size, overlap)
    assert_close(run_tiled(_shrink, grown, back), z)


@given(st.integers(1, 200), st.integers(2, 40))
def test_runs_of_frames_cover_all_and_share_one(frames, tile_frames):
    spans = Tiling.of(4, tile_frames, 8, 0.25).time_spans(frames)
    assert spans[0][0] == 0
    assert spans[-1][1] == frames
    assert all(first[1] - 1 == second[0] for first, second in zip(spans, spans[1:], strict=False))
    assert all(1 <= stop - start <= tile_frames for start, stop in spans)


def test_a_seam_fades_linearly():
    """Two tiles of constants 0 and 1 with an overlap of 4: the second rises from 0 by quarters."""
    calls = iter([0.0, 1.0])

    def constant(x):
        return torch.full_like(x, next(calls))

    out = run_tiled(constant, torch.zeros(1, 1, 1, 8, 12), Tiling(size=8, step=8, frames=2, blend=4, kept=8))
    assert out[0, 0, 0, 0].tolist() == [0.0] * 8 + [0.0, 0.25, 0.5, 0.75]


def _tile(vae, size: int, latents: int, frames: int, latent_frames: int, overlap: float) -> None:
    for attribute, value in zip(TILE_ATTRIBUTES, (size, latents, frames, latent_frames, overlap), strict=True):
        setattr(vae, attribute, value)
    vae.enable_tiling()


def test_tiles_are_never_larger_than_asked_and_off_means_off():
    vae = tiny()
    seen = []
    vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[2:])))
    _tile(vae, 32, 4, 5, 2, 0.25)
    video = random_video(9, 48, 64)
    with torch.no_grad():
        latents = vae.encode(video).latent_dist.mean
        assert latents.shape == (1, 4, 3, 6, 8)
        assert all(frames <= 5 and height <= 32 and width <= 32 for frames, height, width in seen)
        assert len(seen) == 2 * 2 * 3
        seen.clear()
        assert vae.decode(latents).sample.shape == video.shape
        assert all(frames <= 2 and height <= 4 and width <= 4 for frames, height, width in seen)
        seen.clear()
        vae.disable_tiling()
        vae.encode(video)
        assert seen == [(9, 48, 64)]


def test_what_fits_one_tile_is_not_tiled():
    vae = tiny()
    video = random_video(5, 32, 32)
    with torch.no_grad():
        plain = vae.encode(video).latent_dist.mean
        _tile(vae, 32, 4, 5, 2, 0.25)
        assert torch.equal(vae.encode(video).latent_dist.mean, plain)


def test_a_smooth_video_is_nearly_the_same_with_tiles():
    vae = tiny()
    ramp = torch.linspace(-0.5, 0.5, 64)
    video = (ramp[:, None] + 0.5 * ramp).expand(1, 3, 9, 64, 64).contiguous()
    with torch.no_grad():
        whole = vae.decode(vae.encode(video).latent_dist.mean).sample
        _tile(vae, 48, 6, 5, 2, 0.5)
        tiled = vae.decode(vae.encode(video).latent_dist.mean).sample
    assert tiled.shape == whole.shape
    # Norms and attention of a tile see that tile only, so random weights are far from exact; a misplaced tile is off by
    # more than the whole deviation.
    assert (tiled - whole).std() < 0.5 * whole.std()


def test_the_defaults_are_those_of_720p_decoding():
    vae = tiny()
    assert [getattr(vae, name) for name in TILE_ATTRIBUTES] == [512, 64, 29, 8, 0.125]


@pytest.mark.parametrize(
    ("size", "latents", "frames", "latent_frames", "overlap"),
    [(32, 5, 5, 2, 0.25), (32, 4, 6, 2, 0.25), (32, 4, 5, 2, 0.3), (8, 1, 5, 2, 0.25), (32, 4, 1, 1, 0.25)],
)
def test_tiles_that_do_not_fit_are_refused(size, latents, frames, latent_frames, overlap):
    vae = tiny()
    _tile(vae, size, latents, frames, latent_frames, overlap)
    with pytest.raises(EvditError, match="do not fit"):
        vae.decode(torch.randn(1, 4, 3, 9, 9))
