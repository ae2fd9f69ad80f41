"""The three parametrisations agree on x0 and eps, in closed form and in round trips."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.closeness import assert_close
from vdit_cli.diffusion.guidance import combine
from vdit_cli.diffusion.prediction import KINDS, eps_from, kind_of, target, velocity, x0_from, x0_gain
from vdit_cli.errors import EvditError

pytestmark = pytest.mark.numerical


def _noised(kind: str, share: float):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    eps = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    s = torch.full((2, 1, 1, 1, 1), share, dtype=torch.float64)
    a = 1 - s if kind == "flow" else (1 - s**2).sqrt()
    return x0, eps, a, s, a * x0 + s * eps


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_target_gives_back_data_and_noise(kind, share):
    x0, eps, a, s, x = _noised(kind, share)
    output = target(kind, x0, eps, a, s)
    assert_close(x0_from(kind, output, x, a, s), x0)
    assert_close(eps_from(kind, output, x, a, s), eps)


@given(share=st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_any_output_is_read_consistently(share):
    """x = a x0 + s eps must hold for the estimates of an arbitrary network output, not only for the true target."""
    for kind in KINDS:
        _, _, a, s, x = _noised(kind, share)
        output = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
        assert_close(a * x0_from(kind, output, x, a, s) + s * eps_from(kind, output, x, a, s), x)


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0.01, 0.99))
@settings(max_examples=20, deadline=None)
def test_a_gain_is_the_derivative_of_x0_by_the_output(kind, share):
    """Of either sign: autograd's, at any output."""
    _, _, a, s, x = _noised(kind, share)
    output = torch.randn_like(x).requires_grad_()
    (slope,) = torch.autograd.grad(x0_from(kind, output, x, a, s).sum(), output)
    assert_close(x0_gain(kind, a, s).expand_as(slope), slope.abs())


def test_v_is_the_angular_derivative():
    """With a = cos p and s = sin p, v = dx/dp (arXiv 2202.00512): compared with a difference quotient."""
    x0, eps, _, _, _ = _noised("v", 0.5)
    p, d = torch.tensor(0.7, dtype=torch.float64), 1e-6
    slope = ((torch.cos(p + d) - torch.cos(p - d)) * x0 + (torch.sin(p + d) - torch.sin(p - d)) * eps) / (2 * d)
    assert_close(velocity(x0, eps, torch.cos(p), torch.sin(p)), slope, rtol=1e-6, atol=1e-6)


def test_unknown_kinds_are_refused():
    x = torch.zeros(1)
    for read in (lambda: target("x", x, x, x, x), lambda: x0_from("x", x, x, x, x), lambda: eps_from("x", x, x, x, x)):
        with pytest.raises(EvditError, match="unknown prediction 'x'"):
            read()
    for read in (lambda: x0_gain("x", x, x),):
        with pytest.raises(EvditError, match="unknown prediction 'x'"):
            read()
    with pytest.raises(EvditError, match="unknown prediction type 'sample'"):
        kind_of("sample")
    assert [kind_of(name) for name in ("epsilon", "v_prediction", "flow_prediction")] == list(KINDS)


def test_guidance_is_an_extrapolation():
    cond, null = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert_close(combine(cond, null, 1.0), cond)
    assert_close(combine(cond, null, 0.0), null)
    assert_close(combine(cond, null, 3.0), torch.tensor([3.0, -2.0]))
