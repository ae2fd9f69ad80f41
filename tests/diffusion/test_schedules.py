"""The noise tables against the definition in plain Python and against diffusers."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from tests.closeness import assert_close
from vdit_cli.diffusion.schedules import NoiseSchedule, linear_betas
from vdit_cli.errors import EvditError

pytestmark = pytest.mark.numerical


def test_linear_tables_equal_the_product_written_out():
    schedule = NoiseSchedule.from_config({"beta_schedule": "linear"})
    alphas_squared = 1.0
    for t in range(1000):
        alphas_squared *= 1 - (1e-4 + (2e-2 - 1e-4) * t / 999)
        assert_close(schedule.alphas[t], math.sqrt(alphas_squared), rtol=1e-12)
        assert_close(schedule.sigmas[t], math.sqrt(1 - alphas_squared), rtol=1e-9)
    assert schedule.timesteps == 1000


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_tables_equal_those_of_diffusers(name):
    config = {"beta_schedule": name, "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    ours = NoiseSchedule.from_config(config)
    theirs = DDIMScheduler.from_config(config).alphas_cumprod.double()
    assert_close(ours.alphas.square(), theirs, rtol=1e-4, atol=1e-6)
    assert_close(ours.alphas.square() + ours.sigmas.square(), torch.ones(1000, dtype=torch.float64))


def test_look_up_broadcasts_and_follows_the_tensor():
    schedule = NoiseSchedule.from_betas(linear_betas())
    like = torch.zeros(3, 4, 2, 2, 2, dtype=torch.float32)
    a, s = schedule.at(torch.tensor([0, 500, 999]), like)
    assert a.shape == s.shape == (3, 1, 1, 1, 1)
    assert a.dtype == torch.float32
    assert_close(a.flatten(), schedule.alphas[[0, 500, 999]], rtol=1e-6)
    ratio = schedule.alphas[10:11] / schedule.sigmas[10:11]
    assert_close(schedule.snr(torch.tensor([10])).flatten(), ratio**2, rtol=1e-12)
    assert schedule.to("cpu").timesteps == 1000


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"beta_schedule": "linnear"}, "linnear"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_a_schedule_that_is_not_ours_is_refused(config, says):
    with pytest.raises(EvditError, match=says):
        NoiseSchedule.from_config(config)
