"""Shapes: those of the models, those of flags, and what is refused."""

from __future__ import annotations

import pytest

from tests.closeness import assert_close
from vdit_cli.attention.presets import PRESETS
from vdit_cli.bench.model_sizes import SIZES
from vdit_cli.bench.paper import TABLE_1, sparsity
from vdit_cli.bench.presets import ALL_TABLES, PAPER_PRESETS, kernels_of, shapes_of
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.recipe import BenchAttentionOptions, load


def asked(**flags: object) -> BenchAttentionOptions:
    """The options that these flags give."""
    return load(flags={f"bench.attention.{key}": value for key, value in flags.items()}).bench.attention


@pytest.mark.parametrize(
    ("name", "tokens", "heads", "head_dim"),
    [
        ("open-sora-plan-29", 28_800, 24, 96),
        ("open-sora-plan-93", 86_400, 24, 96),
        ("cogvideox-5b", 13 * 1350 + 226, 48, 64),
        ("wan-480p", 21 * 1560, 40, 128),
        ("wan-720p", 21 * 3600, 40, 128),
        ("hunyuan-720p", 33 * 3600 + 256, 24, 128),
        ("shapes", 512, 6, 48),
        ("tiles-256", 8 * 256, 6, 48),
    ],
)
def test_the_presets_are_the_models_sizes(name: str, tokens: int, heads: int, head_dim: int):
    """Tokens, heads and widths; each mask exists and none is full; the densest comes first."""
    (shape,) = shapes_of(asked(preset=name))
    assert (shape.name, shape.grid.tokens, shape.heads, shape.head_dim) == (name, tokens, heads, head_dim)
    assert [mask.name for mask in shape.masks] == list(PRESETS[name].masks)
    assert not any(mask.is_dense for mask in shape.masks)


@pytest.mark.parametrize("name", SIZES)
def test_the_steps_that_are_measured_are_of_the_same_attention(name: str):
    """Grid, layers, heads and width of a whole step are those of its preset."""
    preset, size = PRESETS[name], SIZES[name]
    facts = (preset.grid, preset.layers, preset.heads, preset.head_dim)
    assert facts == (size.grid, size.layers, size.heads, size.head_dim)


def test_every_table_names_presets():
    """`--all` and `--table 1` measure presets that are there, and Table 1 is in both."""
    assert {name for name, _ in ALL_TABLES} == set(PRESETS)
    assert {(name, False) for name in PAPER_PRESETS} <= set(ALL_TABLES)
    assert [shape.name for shape in shapes_of(asked(table=1))] == list(PAPER_PRESETS)
    assert [(shape.name, shape.backward) for shape in shapes_of(asked(every=True))] == list(ALL_TABLES)


@pytest.mark.parametrize("row", TABLE_1, ids=lambda row: row.mask)
def test_the_papers_sparsity_is_ours(row):
    """To two decimals, in every row."""
    assert sparsity(row) == row.sparsity


def test_flags_make_a_shape_of_their_own():
    """Sizes set beside a preset win, and the shape gets their name; text keeps its side."""
    own = asked(latent_frames=5, frame_tokens=7, heads=2, head_dim=16, text=3, masks="1:4, 3:2", batch=2)
    (shape,) = shapes_of(own)
    assert (shape.name, shape.grid.tokens, shape.batch) == ("5x7+3-2x16", 38, 2)
    assert [mask.name for mask in shape.masks] == ["3:2", "1:4"]
    (text,) = shapes_of(asked(preset="hunyuan-720p", text=8))
    assert (text.grid.text_before, text.grid.text_after) == (0, 8)
    (cut,) = shapes_of(asked(preset="open-sora-plan-29", latent_frames=12))
    assert [mask.name for mask in cut.masks] == ["6:6", "4:8", "3:9", "1:11"]


@pytest.mark.numerical
def test_work_is_counted_on_kept_pairs():
    """4 B H D a pair, 3.5 times as much with backward: 28,800 tokens by hand."""
    (shape,) = shapes_of(asked(preset="open-sora-plan-29", batch=2))
    assert_close(shape.flops(0.5), 4 * 2 * 24 * 96 * 28_800**2 / 2)
    (both,) = shapes_of(asked(preset="open-sora-plan-29", batch=2, backward=True))
    assert_close(both.flops(0.5), 3.5 * shape.flops(0.5))
    assert both.key == "open-sora-plan-29-backward"


@pytest.mark.parametrize(
    ("flags", "rule", "first_step"),
    [
        ({"preset": "wan-480"}, "unknown preset", "wan-480p"),
        ({"masks": "2:7"}, "2:7 is for 9 frames", "2:6"),
        ({"masks": "8:0"}, "every mask is full", None),
        ({"masks": ","}, "no mask is named", None),
        ({"latent_frames": 1000}, "at most 256", "--latent-frames 256"),
        ({"table": 2}, "table 2 is not there", "--table 1"),
        ({"every": True, "table": 1}, "--all holds Table 1", "--all"),
        ({"every": True, "heads": 3}, "heads can't be set", "--all"),
        ({"table": 1, "masks": "1:7"}, "masks can't be set", "--table 1"),
    ],
)
def test_what_does_not_fit_is_refused(flags: dict, rule: str, first_step: str | None):
    """Exit 2, the flag as the origin, and something to paste."""
    with pytest.raises(EvditError, match=rule) as caught:
        shapes_of(asked(**flags))
    assert caught.value.exit_code == USAGE and caught.value.where.startswith("--")
    assert first_step is None or caught.value.next_steps[0] == first_step


def test_kernels_by_name():
    """All, none, or some in the order of the table; an unknown one is answered with the nearest."""
    known = ("sdpa", "triton", "flex")
    assert kernels_of(asked(), known) == known
    assert kernels_of(asked(kernels="none"), known) == ()
    assert kernels_of(asked(kernels="flex,sdpa"), known) == ("sdpa", "flex")
    with pytest.raises(EvditError, match="unknown kernel 'tritn'") as caught:
        kernels_of(asked(kernels="sdpa,tritn"), known)
    assert caught.value.next_steps[0] == "triton"
