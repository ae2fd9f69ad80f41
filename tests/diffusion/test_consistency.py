"""Steps, references and weights against their equations, and the three predictions against each other."""

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.diffusion.consistency import (
    clipped_weight,
    pseudo_huber,
    reference,
    span,
    step,
    target_share,
    x0_weight,
)
from vdit_cli.diffusion.milestones import CLEAN, Milestones, signal_and_noise
from vdit_cli.diffusion.prediction import eps_from, target, x0_from, x0_gain
from vdit_cli.diffusion.schedules import NoiseSchedule

pytestmark = pytest.mark.numerical

SCHEDULES = {"ddpm": NoiseSchedule.from_config({}), "straight": NoiseSchedule.straight(1000)}


def _normal(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, 2, 2, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_step_keeps_data_and_noise(name):
    """On x_t = a x0 + s eps with the true x0 every step lands on a_u x0 + s_u eps."""
    schedule = SCHEDULES[name]
    times = torch.tensor([999, 500, 3]), torch.tensor([998, 20, CLEAN])
    (a_t, s_t), (a_u, s_u) = (signal_and_noise(schedule, t) for t in times)
    x0, eps = _normal(0, 3), _normal(1, 3)
    assert_close(step(a_t * x0 + s_t * eps, x0, a_t, s_t, a_u, s_u), a_u * x0 + s_u * eps, atol=1e-12)


def test_a_straight_step_is_an_euler_step():
    schedule = SCHEDULES["straight"]
    (a_t, s_t), (a_u, s_u) = (signal_and_noise(schedule, torch.tensor([t])) for t in (700, 450))
    x, v = _normal(0, 1), _normal(1, 1)
    assert_close(step(x, x0_from("flow", v, x, a_t, s_t), a_t, s_t, a_u, s_u), x + (s_u - s_t) * v)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("points", [1, 5, 25])
def test_the_reference_is_that_of_the_method(name, points):
    """x_ref = (z - (s_tau / s_t) x_t) / (a_tau - a_t s_tau / s_t), z as the two steps make it, in float64."""
    path = Milestones(4, points)
    t, u, tau = path.at(torch.arange(1, 4 * points + 1))
    (a_t, s_t), (a_u, s_u), (a, s) = (signal_and_noise(SCHEDULES[name], times) for times in (t, u, tau))
    x_t, y, f = (_normal(seed, len(t)) for seed in range(3))
    x_u = step(x_t, y, a_t, s_t, a_u, s_u)
    z = torch.where((u == tau).view(-1, 1, 1, 1, 1), x_u, step(x_u, f, a_u, s_u.clamp(min=1e-9), a, s))
    expected = (z - s / s_t * x_t) / (a - a_t * s / s_t)
    share = target_share(a_t, s_t, a_u, s_u, a, s, (u == tau).view(-1, 1, 1, 1, 1))
    assert_close(reference(y, f, share), expected, rtol=1e-9, atol=1e-9)
    assert torch.equal(share.flatten() == 0, u == tau)
    assert torch.equal(share.flatten() == 1, (tau == CLEAN) & (u != tau)), "the step to clean data is x0 itself"
    assert torch.all((share >= 0) & (share <= 1))


def test_a_span_is_the_derivative_of_a_step():
    (a_t, s_t), (a_u, s_u) = (signal_and_noise(SCHEDULES["ddpm"], torch.tensor([t])) for t in (999, 749))
    x, x0 = _normal(0, 1), _normal(1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(step(x, x0, a_t, s_t, a_u, s_u).sum(), x0)
    assert_close(gradient, span(a_t, s_t, a_u, s_u).expand_as(gradient))
    assert gradient.max() < 0.06, "why errors are compared in x0-space: a milestone hardly feels x0 at high noise"


def test_pseudo_huber_is_square_near_zero_and_absolute_far():
    near, far = torch.tensor(1e-5, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    assert_close(pseudo_huber(near, 1e-3), 1e-10 / 2e-3, rtol=1e-3)
    assert_close(pseudo_huber(far, 1e-3), 3 - 1e-3, rtol=1e-6)


def test_pseudo_huber_is_never_below_zero():
    """Also in float32, whose sqrt(c^2) is not c on every processor; exactly 0 where nothing differs."""
    tiny = torch.logspace(-12, 0, 1001)
    assert (pseudo_huber(tiny) > 0).all() and pseudo_huber(torch.zeros(1)) == 0
    assert_close(pseudo_huber(tiny), pseudo_huber(tiny.double()), rtol=1e-5)


def test_weights_are_snr_and_one_up_to_the_cap():
    schedule = SCHEDULES["ddpm"]
    a, s = signal_and_noise(schedule, torch.arange(1000))
    weights = clipped_weight(a, s, 5.0).flatten()
    assert_close(weights, (1 / s.flatten().square()).clamp(max=5.0), told="1 - s^2 = a^2: SNR + 1 = 1 / s^2")
    assert weights[0] == 5.0
    assert_close(weights[999], 1, atol=1e-4)


def test_no_segment_of_any_prediction_is_pulled_much_harder_than_the_others():
    """Weight times gain, the slope of the loss at the output far from zero, a mean a segment of four.

    By x0 alone eps would be pulled 37 times as hard in its noisiest segment as in its cleanest.
    """
    ratios, plain = {}, {}
    for kind, name in (("eps", "ddpm"), ("v", "ddpm"), ("flow", "straight")):
        a, s = signal_and_noise(SCHEDULES[name], torch.arange(1000))
        gain, weight = x0_gain(kind, a, s), x0_weight(kind, a, s)
        assert kind == "eps" or torch.equal(weight, clipped_weight(a, s)), "v and flow keep their weight"
        for found, each in ((ratios, weight), (plain, clipped_weight(a, s))):
            segments = (each * gain).view(4, 250).mean(dim=1)
            found[kind] = (segments.max() / segments.median()).item()
    assert max(ratios.values()) < 2 < 10 < plain["eps"], (ratios, plain)


def test_an_eps_weight_is_alpha_times_that_of_v():
    a, s = signal_and_noise(SCHEDULES["ddpm"], torch.tensor([999, 249, 0]))
    assert_close(x0_weight("eps", a, s, 5.0), a * (1 / s.square()).clamp(max=5.0))


def test_the_three_predictions_tell_one_network():
    """x0 and eps read from any of them are the same; a straight path is the other one scaled by 1 / (a + s)."""
    schedule = SCHEDULES["ddpm"]
    a, s = signal_and_noise(schedule, torch.tensor([999, 500, 0]))
    x0, eps = _normal(0, 3), _normal(1, 3)
    x = a * x0 + s * eps
    for kind in ("eps", "v"):
        output = target(kind, x0, eps, a, s)
        assert_close(x0_from(kind, output, x, a, s), x0, atol=1e-9)
        assert_close(eps_from(kind, output, x, a, s), eps, atol=1e-9)
    straight = a / (a + s), s / (a + s)
    output = target("flow", x0, eps, *straight)
    assert_close(x0_from("flow", output, x / (a + s), *straight), x0, atol=1e-9)
