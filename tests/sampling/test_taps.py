"""Taps on a real transformer: what they see is what the sites attend with, and sampling does not notice them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.closeness import assert_close
from tests.tiny_pipeline import write_pipeline
from vdit_cli.backbones.base import Backbone
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import EvditError, Interrupted
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.sample import SampleSpec, sample
from vdit_cli.sampling.taps import Shown, Taps, read_layers, site_names
from vdit_cli.timing import Silent

SPEC = SampleSpec(video_frames=9, height=32, width=48, steps=3, guidance=2.0, scheduler="ddim")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The tiny pipeline, in float32 on the CPU."""
    return open_backbone(find_source(str(write_pipeline(tmp_path_factory.mktemp("tiny")))), device="cpu")


def sampled(backbone: Backbone, progress: Silent) -> torch.Tensor:
    with backbone.resident("text"):
        text, null = (backbone.encode_text([prompt]) for prompt in ("a large red circle", ""))
    with backbone.resident("transformer"):
        return sample(backbone, SPEC, text, null, generators_for([3]), progress)


@pytest.mark.numerical
@torch.no_grad()
def test_the_trajectory_is_the_same_with_taps_on(backbone: Backbone):
    """Layers and steps as chosen, q and k of the conditional branch with their positions; latents equal to the bit."""
    plain = sampled(backbone, Silent())
    sites = dict(enumerate(backbone.attention_sites()))
    seen: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    grid = backbone.grid(SPEC.video_frames, SPEC.height, SPEC.width)
    calls: list[torch.Tensor] = []
    hook = sites[1].register_forward_pre_hook(lambda site, args: calls.append(args[0]))

    def see(layer: int, step: int, shown: Shown) -> None:
        seen[layer, step] = shown[0][0].clone(), shown[1][0].clone()

    with Taps(sites, (0, 2), grid, see, Silent()) as taps:
        tapped = sampled(backbone, taps)
    hook.remove()
    assert torch.equal(plain, tapped)
    assert list(seen) == [(0, 0), (1, 0), (0, 2), (1, 2)] and taps.is_done
    assert all(site.attend is None for site in sites.values())

    cos, sin = backbone.transformer.rotary((grid.frames, grid.rows, grid.cols), torch.device("cpu"))
    for step in (0, 2):
        shown: list[tuple[torch.Tensor, torch.Tensor]] = []
        sites[1].attend = lambda q, k, v, shown=shown: shown.append((q, k)) or v
        sites[1](calls[step][:1], cos, sin)  # the first row is the prompt's, the second the null text's
        sites[1].attend = None
        for found, true in zip(seen[1, step], shown[0], strict=True):
            assert_close(found, true[0], atol=1e-5)


def test_taps_ask_to_stop_after_the_last_chosen_step_and_put_back_what_was_there(backbone: Backbone):
    """Only chosen layers are touched; another attend comes back, after an error too."""
    sites = backbone.attention_sites()
    grid = backbone.grid(SPEC.video_frames, SPEC.height, SPEC.width)
    before = lambda q, k, v: v  # noqa: E731
    sites[0].attend = before
    with Taps({0: sites[0]}, (1,), grid, lambda *shown: None, Silent()) as taps:
        with pytest.raises(Interrupted, match="after step 2 of 3"):
            sampled(backbone, taps)
        assert taps.is_done and sites[1].attend is None
    assert sites[0].attend is before

    def fail(*shown: object) -> None:
        raise RuntimeError("seen enough")

    with pytest.raises(RuntimeError, match="seen enough"), Taps({0: sites[0]}, (0,), grid, fail, Silent()) as taps:
        sampled(backbone, taps)
    assert sites[0].attend is before
    sites[0].attend = None


def test_names_of_sites(backbone: Backbone):
    """Those of the state dict; a plain word where a model does not tell."""
    sites = backbone.attention_sites()
    assert site_names(backbone, sites) == ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1")
    assert site_names(object(), sites) == ("layer 0", "layer 1")


def test_layers_are_numbers_and_ranges():
    """In any order, each once; the nearest names where one is unknown."""
    assert read_layers("7, 0,4-5", 8, "--layers") == (0, 4, 5, 7)
    assert read_layers("all", 3, "--layers") == (0, 1, 2)
    with pytest.raises(EvditError, match="unknown layer '3-9': the model has layers 0 to 7") as caught:
        read_layers("3-9", 8, "--layers 3-9")
    assert caught.value.next_steps == ("--layers 7", "--layers all") and caught.value.where == "--layers 3-9"


def test_a_folder_that_is_no_model_is_told_first(tmp_path: Path):
    """The source says so, before any tap."""
    with pytest.raises(EvditError, match="unknown model"):
        find_source("shape")
