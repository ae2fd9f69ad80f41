"""The contract of a backbone, held by Open-Sora-Plan and by the package of docs/adding-a-backbone.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import documented_backbone
from tests.closeness import assert_close
from tests.documented_backbone import PAGE
from tests.tiny_pipeline import write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.backbones.base import Backbone, Trains, own_plan
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.lora import write_adapter
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import DONE, ENVIRONMENT, EvditError
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

PROMPTS = ["a large red circle", "a blue square moving right"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package, installed in a folder."""
    folder = tmp_path_factory.mktemp("installed")
    documented_backbone.install(folder)
    return folder


@pytest.fixture(scope="module")
def clouds(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of the page's backbone."""
    folder = tmp_path_factory.mktemp("models") / "clouds"
    parameters = documented_backbone.write_weights(package, folder / "clouds.safetensors")
    (folder / "model_index.json").write_text('{"_class_name": "CloudsPipeline"}', encoding="utf-8")
    assert f"parameters={parameters:_}," in PAGE.read_text(encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=["open-sora-plan", "clouds"])
def backbone(request: pytest.FixtureRequest, package: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Each backbone, opened on the CPU from a folder with random weights."""
    if request.param == "open-sora-plan":
        return open_backbone(find_source(str(write_pipeline(tmp_path_factory.mktemp("ours") / "model"))), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(package)
        return open_backbone(find_source(str(request.getfixturevalue("clouds"))), device="cpu")


def size_of(backbone: Backbone) -> tuple[int, int, int]:
    """The backbone's own frames, height and width."""
    return backbone.defaults.video_frames, backbone.defaults.height, backbone.defaults.width


def plan_of(backbone: Backbone, mask: str) -> MaskPlan:
    """That mask in all layers."""
    grid = backbone.grid(*size_of(backbone))
    return MaskPlan.uniform(backbone.name, grid, backbone.architecture, TileMask.parse(mask, grid.frames))


def test_it_says_what_it_is(backbone: Backbone):
    """Names, sizes and digests that plans and receipts are made of."""
    assert backbone.name and backbone.architecture.layers >= 1 and backbone.prediction in ("eps", "v", "flow")
    assert backbone.defaults.video_frames > 1 and backbone.defaults.steps >= 1 and backbone.defaults.fps >= 1
    assert "{prompt}" in backbone.defaults.prompt_template
    assert len(backbone.weights_digest) == 64 and int(backbone.weights_digest, 16)
    assert isinstance(backbone.lineage, tuple)


def test_sizes_agree(backbone: Backbone):
    """Latents, grid and tokens of the model's own size; a length that no model has is refused in words."""
    _, frames, height, width = backbone.latent_shape(*size_of(backbone))
    grid = backbone.grid(*size_of(backbone))
    assert grid.frames == frames and height % grid.rows == 0 and width % grid.cols == 0
    assert backbone.grid(*size_of(backbone), text_tokens=7).tokens == grid.tokens + 7
    with pytest.raises(EvditError, match="do not fit"):
        backbone.latent_shape(size_of(backbone)[0] + 1, *size_of(backbone)[1:])


def test_memory_is_told_without_weights(backbone: Backbone):
    """Bytes of each part, and of the work, which grows with the video."""
    assert backbone.part_bytes("transformer") > 0
    assert min(backbone.part_bytes(part) for part in ("text", "vae")) >= 0
    frames, height, width = size_of(backbone)
    small, large = (backbone.working_bytes("transformer", batch, frames, height, width, False) for batch in (1, 2))
    assert 0 < small < large


@torch.no_grad()
def test_a_masked_video_from_words(backbone: Backbone):
    """Text, one network call under a plan, decoding; the mask changes the prediction, and its kernel is told."""
    shape = backbone.latent_shape(*size_of(backbone))
    frames = shape[1]
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    with backbone.resident("text"):
        text = backbone.encode_text(PROMPTS)
    assert text.states_BLC.shape[:2] == text.mask_BL.shape and len(text.mask_BL) == 2
    outputs = {}
    for mask in (f"{frames}:0", f"1:{frames - 1}"):
        with backbone.resident("transformer"):
            attends = backbone.apply_plan(plan_of(backbone, mask), batch=2)
            assert [attend.mask.name for attend in attends] == [mask] * backbone.architecture.layers
            assert [site.attend for site in backbone.attention_sites()] == list(attends)
            outputs[mask] = backbone.denoise(x, torch.tensor([999, 500]), text)
        assert outputs[mask].shape == x.shape and outputs[mask].isfinite().all()
    dense, sparse = outputs.values()
    assert (dense - sparse).abs().max() > 0.001
    with backbone.resident("vae"):
        video = backbone.decode_video(x)
        assert video.shape == (2, 3, *size_of(backbone)) and -1 <= video.min() <= video.max() <= 1
        assert backbone.encode_video(video).shape == x.shape


@pytest.mark.numerical
def test_it_trains_and_what_it_learnt_opens_as_a_checkpoint(
    backbone: Backbone, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Gradients for the parameters asked for alone; other values for one call; written, only those differ, bit for bit.

    The plan that it wore lies with it. A delta is added to the stored tensor, whatever the network holds now.
    """
    assert isinstance(backbone, Trains)
    x = torch.randn(1, *backbone.latent_shape(*size_of(backbone)), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([500])
    with backbone.resident("text"), torch.no_grad():
        text = backbone.encode_text(PROMPTS[:1])
    with backbone.resident("transformer"):
        frames = backbone.grid(*size_of(backbone)).frames
        backbone.apply_plan(plan_of(backbone, f"{frames}:0"), batch=1, needs_grad=True)
        every = backbone.trainable()
        name, other = [name for name, each in every.items() if each.ndim == 2][-2:]
        assert list(backbone.trainable([name])) == [name]
        backbone.denoise(x, t, text).square().mean().backward()
        assert [key for key, each in every.items() if each.grad is not None and each.grad.any()] == [name]
        with torch.no_grad():
            before = backbone.denoise(x, t, text)
            value = every[name] + 0.1
            moved = backbone.predict_with({name: value}, x, t, text)
            assert torch.equal(backbone.denoise(x, t, text), before)
            every[name].copy_(value)
            assert torch.equal(backbone.denoise(x, t, text), moved) and not torch.equal(moved, before)
        assert all(isinstance(block, torch.nn.Module) for block in backbone.blocks())
        delta = torch.full_like(every[other], 0.25)
        worn = plan_of(backbone, f"1:{frames - 1}")
        told = Lineage((backbone.weights_digest,), worn.digest).metadata()
        backbone.write_transformer(tmp_path / "taught", {name: value}, {other: delta}, told)
        worn.write(tmp_path / "taught")
    stored, taught = (state_of(folder) for folder in (stored_folder(backbone), tmp_path / "taught"))
    assert stored.keys() == taught.keys()
    assert [key for key in stored if not torch.equal(stored[key], taught[key])] == [
        key for key in stored if key in (name, other)
    ]
    assert_close(taught[other], stored[other] + 0.25, planted=stored[other])
    monkeypatch.syspath_prepend(package)
    source = find_source(str(stored_folder(backbone).parent if backbone.name != "clouds" else stored_folder(backbone)))
    again = open_backbone(source, device="cpu", checkpoint=str(tmp_path / "taught"))
    assert again.lineage == (backbone.weights_digest,) and own_plan(again) == worn and own_plan(backbone) is None
    with again.resident("transformer"), torch.no_grad():
        again.apply_plan(plan_of(again, f"{frames}:0"), batch=1)
        found = again.predict_with({other: stored[other]}, x, t, text)
    assert_close(found, moved, planted=before)


def stored_folder(backbone: Backbone) -> Path:
    """Where the transformer's weights lie."""
    return Path(getattr(backbone, "transformer_folder", None) or backbone.file.parent)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the one weight file in a folder."""
    return load_file(next(folder.glob("*.safetensors")))


def test_a_plan_for_another_backbone_is_refused(backbone: Backbone):
    """By architecture, before anything is bound; the name is only told."""
    plan = plan_of(backbone, "1:" + str(backbone.grid(*size_of(backbone)).frames - 1))
    with pytest.raises(EvditError, match="the plan is for Other of"):
        backbone.apply_plan(replace(plan, architecture=replace(backbone.architecture, transformer="Other")), batch=1)
    with backbone.resident("transformer"):
        backbone.apply_plan(replace(plan, backbone="renamed"), batch=1)


def test_adapters_are_added_or_refused(
    backbone: Backbone, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A backbone that does not add them never opens as if it had."""
    monkeypatch.syspath_prepend(package)
    name = "transformer_blocks.0.attn1.to_q"
    pairs = {name: (torch.ones(2, 48), torch.ones(48, 2))}
    write_adapter(tmp_path / "adapter", pairs, {})
    if backbone.name == "clouds":
        with pytest.raises(EvditError, match="takes no adapters"):
            open_backbone(find_source(str(stored_folder(backbone))), device="cpu", lora=(str(tmp_path),))
        return
    source = find_source(str(stored_folder(backbone).parent))
    parameters = []
    for lora in ((), (str(tmp_path),)):
        again = open_backbone(source, device="cpu", lora=lora)
        with again.resident("transformer"):
            parameters.append(dict(again.trainable()))
    plain, changed = parameters
    with torch.no_grad():
        assert torch.equal(changed[f"{name}.weight"], plain[f"{name}.weight"] + 2)
        assert [key for key in plain if not torch.equal(changed[key], plain[key])] == [f"{name}.weight"]


@pytest.mark.numerical
def test_the_page_s_package_works_in_every_command(package: Path, clouds: Path, tmp_path: Path):
    """`evdit models` lists it, its name says what is missing, its folder makes a masked video. The page is short."""
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) < 190

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "XDG_DATA_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "vdit_cli", *args]
        return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False)

    models = {each["name"]: each for each in json.loads(run("models", "--json").stdout)["models"]}
    assert models["clouds"]["tokens"] == 320 and not models["clouds"]["weights_here"]
    listed = clouds / "clouds.safetensors"
    assert_close(models["clouds"]["files"][0]["bytes"], listed.stat().st_size, rtol=0.05)
    absent = run("generate", "white clouds", "--model", "clouds", "-o", "clouds.mp4")
    assert absent.returncode == ENVIRONMENT and "clouds.safetensors (about" in absent.stderr
    made = run("generate", "white clouds", "--model", str(clouds), "--masks", "1:4", "-o", "clouds.mp4")
    assert (made.returncode, made.stdout) == (DONE, "clouds.mp4\n"), made.stderr
    ran = Receipt.read("clouds.json").ran
    assert (ran.model, [layer["mask"] for layer in ran.layers]) == ("clouds", ["1:4"] * 3)
