"""Resampling layers against torch's own interpolation, forward and gradients, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.closeness import assert_close
from vdit_cli.backbones.open_sora_plan import vae_resample
from vdit_cli.backbones.open_sora_plan.vae_config import LAYERS

pytestmark = pytest.mark.numerical

SHAPES = [(1, 2, 1, 1, 1), (2, 3, 2, 5, 3), (1, 4, 6, 2, 7)]


def _grads(result: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    return torch.autograd.grad((result.contiguous() * weights).sum(), inputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dim", "factor"), [(2, (2, 1, 1)), (3, (1, 2, 1)), (4, (1, 1, 2))])
def test_linear_doubling_is_interpolation(shape, dim, factor):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    ours = vae_resample.double_linearly(x, dim)
    theirs = F.interpolate(x, scale_factor=factor, mode="trilinear")
    assert_close(ours, theirs)
    assert_close(_grads(ours, x), _grads(theirs, x))


@pytest.mark.parametrize("shape", SHAPES)
def test_doubling_and_convolving_at_once_is_doing_one_after_the_other(shape):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    ours = vae_resample.double_and_convolve(x, weight, bias)
    doubled = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    theirs = F.conv3d(doubled, weight.unsqueeze(2), bias, padding=(0, 1, 1))
    assert_close(ours, theirs)
    assert_close(_grads(ours, x, weight, bias), _grads(theirs, x, weight, bias))


@pytest.mark.parametrize("role", ["downsampling", "upsampling"])
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_every_layer_changes_the_shape_by_its_own_factors(role, frames):
    for layer in LAYERS[role].values():
        x = torch.randn(1, 4, frames, 6, 8)
        out = layer(4, 4)(x)
        time, space = layer.time_factor, layer.space_factor
        if role == "downsampling":
            assert out.shape == (1, 4, (frames - 1) // time + 1, 6 // space, 8 // space)
        else:
            assert out.shape == (1, 4, (frames - 1) * time + 1, 6 * space, 8 * space)
