"""What a mask changes: errors of one site against a float64 softmax, those of the model's output, and their cost."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.closeness import assert_close
from tests.tiny_pipeline import write_pipeline
from vdit_cli.attention.bind import Attend, bind
from vdit_cli.attention.reference import reference_attention
from vdit_cli.backbones.base import Backbone
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.errors import EvditError, Interrupted
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.sample import SampleSpec, sample
from vdit_cli.sampling.taps import Taps
from vdit_cli.search import sensitivity_pass
from vdit_cli.search.sensitivity_pass import AttentionErrors, OutputErrors, PairNumbers, collected
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Silent

GRID = VideoGrid(4, 2, 3)
MASKS = (TileMask.dense(4), TileMask(4, (0, 2)), TileMask(4, (0,)))
SPEC = SampleSpec(video_frames=9, height=32, width=48, steps=3, guidance=2.0, scheduler="ddim")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The tiny pipeline, in float32 on the CPU."""
    return open_backbone(find_source(str(write_pipeline(tmp_path_factory.mktemp("tiny")))), device="cpu")


def shown(batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v of a site, and its dense output by torch."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, GRID.tokens, 2, 8, generator=random) for _ in range(3))
    out = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return q, k, v, out.transpose(1, 2)


@pytest.mark.numerical
def test_errors_of_a_site_are_mean_squares_over_both_branches():
    """Held to the masked softmax in float64; the full mask loses exactly nothing."""
    q, k, v, out = shown()
    seen = AttentionErrors(MASKS, GRID, "auto")
    seen.see(1, 5, (q, k, v, out))
    dense, *masked = (reference_attention(q.double(), k.double(), v.double(), mask, GRID) for mask in MASKS)
    errors = seen.errors[5, 1]
    assert errors[0] == 0.0 and errors[2] > errors[1] > 0.01
    assert_close(errors[1:], [(each - dense).square().mean().item() for each in masked], rtol=1e-5)
    assert_close(seen.powers[5, 1], dense.square().mean().item(), rtol=1e-5)
    first = AttentionErrors(MASKS, GRID, "auto")
    first.see(1, 5, (q[:1], k[:1], v[:1], out[:1]))
    assert first.errors[5, 1] != errors


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The kept share of each masked pass from now on, in order."""
    kept: list[float] = []

    def bound(mask: TileMask, *rest: Any) -> Attend:
        found = bind(mask, *rest)

        def run(*given: Any) -> Tensor:
            kept.append(mask.kept_share)
            return found.run(*given)

        return replace(found, run=run)

    monkeypatch.setattr(sensitivity_pass, "bind", bound)
    return kept


def test_a_site_costs_one_masked_pass_a_candidate(monkeypatch: pytest.MonkeyPatch):
    """Of tiles: what the masks keep, the full one computes nothing anew; q, k and v are the site's own."""
    kept = recorded(monkeypatch)
    seen = AttentionErrors(MASKS, GRID, "auto")
    for step in (0, 1):
        seen.see(0, step, shown())
    assert kept == [mask.kept_share for mask in MASKS[1:]] * 2


class Work(TorchDispatchMode):
    """Counts pairs of queries and keys of full attention, and calls of linear layers, at torch's own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in str(func):
            batch, heads, queries, _ = args[0].shape
            self.done["pairs"] += batch * heads * queries * args[1].shape[2]
        self.done["linear"] += str(func).startswith("aten.addmm")
        return func(*args, **kwargs or {})


@torch.no_grad()
def test_a_trajectory_costs_itself_and_what_the_masks_keep(backbone: Backbone, monkeypatch: pytest.MonkeyPatch):
    """Full attention and the rest of the model once, and in a step looked at a masked pass a layer and candidate."""
    grid = backbone.grid(SPEC.video_frames, SPEC.height, SPEC.width)
    masks = (TileMask.dense(grid.frames), TileMask(grid.frames, (1,)), TileMask(grid.frames, (0,)))
    kept = recorded(monkeypatch)
    with backbone.resident("text"):
        text, null = backbone.encode_text(["a red ring"]), backbone.encode_text([""])
    with backbone.resident("transformer"):
        with Work() as plain:
            sample(backbone, SPEC, text, null, generators_for([3]), Silent())
        sites = dict(enumerate(backbone.attention_sites()))
        attention = AttentionErrors(masks, grid, "auto")
        with Work() as tapped, Taps(sites, (0, 2), grid, attention.see, Silent()) as taps:
            sample(backbone, SPEC, text, null, generators_for([3]), taps)
    of_layers = SPEC.steps * len(sites) * 2 * backbone.architecture.heads * grid.tokens**2  # both branches
    assert plain.done["pairs"] > of_layers and plain.done["linear"] > 0
    assert tapped.done == plain.done
    assert kept == [mask.kept_share for mask in masks[1:]] * 2 * len(sites)


@torch.no_grad()
def test_one_layer_is_held_at_a_time(backbone: Backbone):
    """When a layer is seen, queries, keys and values of those before are gone."""
    grid = backbone.grid(SPEC.video_frames, SPEC.height, SPEC.width)
    attention = AttentionErrors((TileMask.dense(grid.frames), TileMask(grid.frames, (0,))), grid, "auto")
    held: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def see(layer: int, step: int, shown: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        alive.append(sum(each() is not None for each in held))
        held.extend(map(weakref.ref, shown[:3]))
        attention.see(layer, step, shown)

    with backbone.resident("text"):
        text, null = backbone.encode_text(["a red ring"]), backbone.encode_text([""])
    with backbone.resident("transformer"):
        sites = dict(enumerate(backbone.attention_sites()))
        with Taps(sites, (0, 1), grid, see, Silent()) as taps, pytest.raises(Interrupted):
            sample(backbone, SPEC, text, null, generators_for([3]), taps)
    assert alive == [0, 0, 0, 0]


def test_errors_that_are_not_finite_are_no_numbers():
    """The layer and the step are told; float32 is advised where it was less."""
    q, k, v, out = shown()
    with pytest.raises(EvditError, match=r"layer 3 in step 2 are not finite in float32"):
        AttentionErrors(MASKS, GRID, "auto").see(3, 2, (q, k, v.fill_(float("inf")), out))


@pytest.mark.numerical
@torch.no_grad()
def test_errors_of_the_output_are_those_of_one_masked_layer(backbone: Backbone):
    """Clean data of the guided output against a model masked by hand; sampling does not notice."""
    grid = backbone.grid(SPEC.video_frames, SPEC.height, SPEC.width)
    masks = (TileMask.dense(grid.frames), TileMask(grid.frames, (0,)))
    with backbone.resident("text"):
        text, null = backbone.encode_text(["a red ring"]), backbone.encode_text([""])
    calls: list[tuple[Tensor, Tensor, object]] = []
    with backbone.resident("transformer"):
        plain = sample(backbone, SPEC, text, null, generators_for([3]), Silent())
        sites = dict(enumerate(backbone.attention_sites()))
        attention = AttentionErrors(masks, grid, "auto")
        with Taps(sites, (0, 2), grid, attention.see, Silent()) as taps:
            output = OutputErrors(backbone, SPEC, taps, attention)

            def denoise(x: Tensor, t: Tensor, states: object) -> Tensor:
                calls.append((x, t, states))
                return output(x, t, states)

            tapped = sample(backbone, SPEC, text, null, generators_for([3]), taps, denoise=denoise)
        assert torch.equal(plain, tapped) and sorted(output.errors) == [(0, 0), (0, 1), (2, 0), (2, 1)]
        x, t, states = calls[2]
        dense = backbone.denoise(x, t, states)
        sites[1].attend = attention.bound[masks[1]]
        masked = backbone.denoise(x, t, states)
        sites[1].attend = None
    schedule = NoiseSchedule.from_config(backbone.scheduler_config)
    a, s = (float(each.flatten()[0]) for each in schedule.at(t.long(), x))
    assert backbone.prediction == "v" or backbone.prediction == "eps"
    gain = s if backbone.prediction == "v" else s / a
    (cond, null_out), (cond_masked, null_masked) = dense.chunk(2), masked.chunk(2)
    change = (null_masked + 2.0 * (cond_masked - null_masked)) - (null_out + 2.0 * (cond - null_out))
    found = output.errors[2, 1]
    assert found[0] == 0.0 and found[1] > 0
    assert_close(found[1], (gain * change).square().mean().item(), rtol=1e-4)
    numbers = collected(attention, output, (0, 2), 2)
    assert numbers.output[1][1] == found and numbers.attention[0][1] == attention.errors[0, 1]


def test_numbers_of_a_pair_are_read_back_or_made_again(tmp_path: Path):
    """Equal ones; None for another shape, damage, a negative error, and where the output is to be there and is not."""
    attention = AttentionErrors(MASKS, GRID, "auto")
    for step in (0, 4):
        attention.see(0, step, shown())
    numbers = collected(attention, None, (0, 4), 1)
    path = PairNumbers.file(tmp_path, 7)
    assert PairNumbers.read(path, (2, 1, 3), False) is None
    numbers.write(path)
    assert PairNumbers.read(path, (2, 1, 3), False) == numbers
    assert PairNumbers.read(path, (1, 1, 3), False) is None and PairNumbers.read(path, (2, 1, 3), True) is None
    whole = path.read_text(encoding="utf-8")
    for text in (whole[:-9], whole.replace("0.0", "-1.0", 1), "[" * 5000, whole.replace("power", "might"), "{}"):
        path.write_text(text, encoding="utf-8")
        assert PairNumbers.read(path, (2, 1, 3), False) is None
