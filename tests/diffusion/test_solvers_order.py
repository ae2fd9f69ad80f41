"""The solvers against closed forms and a peer's integrator: their order, and what they are where there is no second."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from tests.closeness import assert_close
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.diffusion.solvers import make_scheduler, set_steps

pytestmark = pytest.mark.numerical

CONFIG = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
SCHEDULE = NoiseSchedule.from_config(CONFIG)
MEAN, STD, MODE_STD = 0.7, 0.5, 0.3
HALFWAY = 249
"""On the grid of each count of steps below; from here on a solver's last step would be one of first order."""


def gaussian(x: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """E[x0 | x] for data N(MEAN, STD^2)."""
    return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN)


def two_modes(x: Tensor, a: Tensor, s: Tensor) -> Tensor:
    """E[x0 | x] for data that is one of N(1, MODE_STD^2) and N(-1, MODE_STD^2), each half of the time."""
    variance = a**2 * MODE_STD**2 + s**2
    mean = torch.tanh(a * x / variance)
    return mean + a * MODE_STD**2 / variance * (x - a * mean)


def start() -> Tensor:
    return torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 1, 9)


def sampled(name: str, x0_of: Callable, steps: int, until: int = -1, timesteps: str | None = None) -> Tensor:
    """The latents as the step at the time `until` finds them, or at the end."""
    scheduler, x = make_scheduler(name, CONFIG, timesteps), start()
    for t in set_steps(scheduler, steps):
        if int(t) == until:
            break
        a, s = SCHEDULE.alphas[t], SCHEDULE.sigmas[t]
        x0 = x0_of(x, a, s)
        x = scheduler.step((a * x - x0) / s, t, x).prev_sample
    return x


def gaussian_path() -> Tensor:
    """Where the ODE takes the start at HALFWAY: x - a MEAN keeps its share of the standard deviation."""
    a, s = SCHEDULE.alphas[[999, HALFWAY]], SCHEDULE.sigmas[[999, HALFWAY]]
    std = (a**2 * STD**2 + s**2).sqrt()
    return a[1] * MEAN + std[1] * (start() - a[0] * MEAN) / std[0]


def two_modes_path() -> Tensor:
    """The same for two modes, by scipy on y = x / a over the ratio of noise to signal: dy / dratio = eps."""

    def slope(ratio: float, y: np.ndarray) -> np.ndarray:
        a = torch.tensor(1 + ratio**2, dtype=torch.float64).rsqrt()
        return ((torch.from_numpy(y) - two_modes(a * torch.from_numpy(y), a, ratio * a)) / ratio).numpy()

    first, last = (float(SCHEDULE.sigmas[t] / SCHEDULE.alphas[t]) for t in (999, HALFWAY))
    y = (start() / SCHEDULE.alphas[999]).flatten().numpy()
    path = solve_ivp(slope, (first, last), y, method="DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(path.y[:, -1]).view_as(start()) * SCHEDULE.alphas[HALFWAY]


TRUTHS = {"one mode": (gaussian, gaussian_path), "two modes": (two_modes, two_modes_path)}
ORDERS = {"ddim": 1, "milestones": 1, "dpm++2m": 2, "unipc": 3}
"""UniPC's corrector adds one to the two that it is made of (arXiv 2302.04867, section 3.3)."""


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("data", TRUTHS)
def test_twice_the_steps_divide_the_error_by_two_to_the_order(name, data):
    x0_of, path = TRUTHS[data]
    truth = path()
    errors = [float((sampled(name, x0_of, steps, HALFWAY) - truth).abs().max()) for steps in (20, 40)]
    assert_close(np.log2(errors[0] / errors[1]), float(ORDERS[name]), atol=0.1, planted=ORDERS[name] + 1.0)


@pytest.mark.parametrize("data", TRUTHS)
def test_a_higher_order_is_nearer_at_four_steps_where_the_network_is_smooth(data):
    x0_of, path = TRUTHS[data]
    truth = path()
    errors = [float((sampled(name, x0_of, 4, HALFWAY) - truth).abs().max()) for name in ("ddim", "dpm++2m", "unipc")]
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("name", ["dpm++2m", "unipc"])
def test_two_steps_of_second_order_are_ddim(name):
    """The first has no step before it; the last, to clean data, is of first order and keeps nothing of a corrector."""
    assert_close(sampled(name, two_modes, 2), sampled("ddim", two_modes, 2), atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "unipc"])
def test_numbers_of_a_spacing_are_that_spacing(name):
    given = sampled(name, two_modes, 4, timesteps="999,749,499,249")
    assert_close(given, sampled(name, two_modes, 4), atol=1e-4)


@pytest.mark.parametrize("name", ["ddim", "milestones", "dpm++2m", "unipc"])
def test_numbers_are_stepped_at_their_own_noise(name):
    """Uneven ones, against two steps of first order by hand."""
    x = start()
    for t, below in ((800, 150), (150, -1)):
        a, s = SCHEDULE.alphas[t], SCHEDULE.sigmas[t]
        a_u, s_u = (SCHEDULE.alphas[below], SCHEDULE.sigmas[below]) if below >= 0 else (1.0, 0.0)
        x0 = gaussian(x, a, s)
        x = a_u * x0 + s_u * (x - a * x0) / s
        assert_close(sampled(name, gaussian, 2, below, timesteps="800,150"), x, atol=1e-4)
