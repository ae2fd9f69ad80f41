"""Rotary tables against the original's, and the closed form: attention sees relative positions only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.closeness import assert_close
from vdit_cli.backbones.open_sora_plan.rope import axis_angles, rotary_tables, rotate
from vdit_cli.errors import EvditError

pytestmark = pytest.mark.numerical

TABLES = Path(__file__).parents[2] / "golden" / "open_sora_plan" / "rope_tables.safetensors"


@pytest.mark.parametrize(("axis", "scale"), [("t24", 1.0), ("h45", 1.5), ("w80", 2.0)])
def test_tables_of_the_original(axis: str, scale: float) -> None:
    theirs = load_file(TABLES)
    angles = axis_angles(int(axis[1:]), 32, scale)
    for name, ours in (("cos", angles.cos()), ("sin", angles.sin())):
        assert_close(ours.repeat(1, 2), theirs[f"{axis}.fp32.{name}"], atol=1e-4)


def test_the_tables_of_a_grid_are_those_of_its_axes() -> None:
    theirs = load_file(TABLES)
    cos, sin = rotary_tables((24, 45, 80), 96, (1.0, 1.5, 2.0))
    assert cos.shape == sin.shape == (24 * 45 * 80, 1, 3, 1, 16)
    t, y, x = 17, 30, 71
    token = (t * 45 + y) * 80 + x
    for part, (axis, position) in enumerate((("t24", t), ("h45", y), ("w80", x))):
        assert_close(cos[token, 0, part, 0], theirs[f"{axis}.fp32.cos"][position, :16], atol=1e-4)
        assert_close(sin[token, 0, part, 0], theirs[f"{axis}.fp32.sin"][position, :16], atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4)),
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 4)),
    st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 1)),
    st.integers(0, 1000),
)
def test_scores_depend_on_relative_positions_only(first, second, shift, seed) -> None:
    grid = (6, 6, 6)
    cos, sin = rotary_tables(grid, 24, (1.0, 1.5, 0.5))
    q, k = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(seed))

    def score(at, to) -> torch.Tensor:
        i, j = ((t * 6 + y) * 6 + x for t, y, x in (at, to))
        turned = [rotate(v.view(1, 1, 8, 24), cos[n : n + 1], sin[n : n + 1]) for v, n in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum(-1)

    moved = [tuple(p + s for p, s in zip(place, shift, strict=True)) for place in (first, second)]
    assert_close(score(*moved), score(first, second))


def test_the_angle_of_one_pair_is_position_over_scale_times_frequency() -> None:
    cos, sin = rotary_tables((1, 1, 4), 6, (1.0, 1.0, 2.0))
    x = torch.zeros(1, 4, 1, 6)
    x[..., 4] = 1.0  # first half of the part of the x axis, whose only frequency is 1
    turned = rotate(x, cos, sin)[0, :, 0]
    angle = torch.arange(4) / 2.0
    assert_close(turned[:, 4], angle.cos())
    assert_close(turned[:, 5], angle.sin())
    assert turned[:, :4].abs().max() == 0


def test_half_precision_is_turned_in_float32() -> None:
    cos, sin = rotary_tables((8, 9, 10), 96, (1.0, 1.5, 2.0))
    x = torch.randn(2, 720, 3, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    turned = rotate(x, cos, sin)
    assert turned.dtype is torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), cos, sin).bfloat16())


def test_a_head_that_does_not_divide_is_refused() -> None:
    with pytest.raises(EvditError, match="attention_head_dim 64"):
        rotary_tables((1, 2, 2), 64, (1.0, 1.0, 1.0))
