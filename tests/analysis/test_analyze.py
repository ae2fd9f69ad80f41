"""A whole analysis of planted attention: structure is read back, runs go on and refuse, numbers survive the disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.analysis.planted import GLOBAL_FRAMES, HEADS, LAYERS, PlantedBackbone, StopsAfter, opened_as, true_mass
from tests.closeness import assert_close, assert_within
from vdit_cli.analysis import analyze as analyzing
from vdit_cli.analysis.analyze import analyze
from vdit_cli.analysis.findings import findings
from vdit_cli.analysis.results import Analysis, LayerAnalysis
from vdit_cli.errors import FAILED, INTERRUPTED, USAGE, EvditError, Interrupted
from vdit_cli.recipe import AnalyzeOptions
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Silent

FRAMES = 8
PLACE = {kind: place for place, kind in enumerate(LAYERS)}


@pytest.fixture
def prompts_file(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("3 over\n8 under\n5\n", encoding="utf-8")
    return str(path)


def run(
    backbone: PlantedBackbone,
    monkeypatch: pytest.MonkeyPatch,
    out: str = "run",
    progress: Silent | None = None,
    **options: object,
) -> Analysis:
    with opened_as(backbone, monkeypatch):
        asked = AnalyzeOptions(**{"model": "planted", "rows": 64, "seeds": "0,5", **options})
        return analyze(asked, Path(out), progress or Silent()).analysis


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    """One analysis of all kinds of layers: three prompts, two seeds, three steps."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "prompts.txt").write_text("3 over\n8 under\n5\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        return run(PlantedBackbone(), patch, str(folder / "run"), prompts_file=str(folder / "prompts.txt"))


def layer(found: Analysis, kind: str) -> LayerAnalysis:
    return found.layers[PLACE[kind]]


@pytest.mark.numerical
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "unstable"])
def test_planted_masses_are_read_back(found: Analysis, kind: str):
    """Tiles, diagonal, ratio, distances and what masks keep, from the closed form."""
    seen, true = layer(found, kind), true_mass(kind, FRAMES)
    off = true[~np.eye(FRAMES, dtype=bool)].mean()
    assert_close(seen.tile_mass, true, atol=1e-5)
    assert_close(seen.head_tile_mass, [true] * HEADS, atol=1e-5)
    unstable = layer(found, "unstable")
    assert_within(seen.head_spread, 1e-4, planted=unstable.head_spread)
    assert_close(seen.diagonal, np.diag(true).mean(), atol=1e-5)
    assert_close(seen.ratio, np.diag(true).mean() / off, rtol=1e-4)
    assert_within(seen.ratio_spread, 1e-3, planted=unstable.ratio_spread)
    assert len(seen.ratios) == len(found.samples) == 12
    apart = np.abs(np.subtract.outer(range(FRAMES), range(FRAMES)))
    assert_close(seen.by_distance, [true[apart == d].mean() for d in range(FRAMES)], atol=1e-5)
    for name in found.candidates:
        kept = TileMask.parse(name, FRAMES).frame_matrix()
        assert_close(seen.kept_mass[name], (true * kept).sum() / FRAMES, atol=1e-5)


def test_the_rule_finds_the_layer_with_planted_structure(found: Analysis):
    """The diagonal and the bands, of which the first stands out from uniform; the rest does not."""
    assert findings(found).structured == (PLACE["diagonal"], PLACE["bands"])


@pytest.mark.numerical
def test_uniform_attention_has_no_structure(found: Analysis):
    """Ratio 1, entropy log N, every mask keeps what its share of tiles is, and nothing repeats."""
    seen = layer(found, "uniform")
    assert_close(seen.ratio, 1, atol=1e-5)
    assert seen.chance == 1 / 8
    assert_close([seen.entropy, seen.uniform_entropy], [np.log(128)] * 2, atol=1e-4)
    assert set(seen.repetition) == {None} and seen.repetition_mean is None and seen.repetition_elsewhere is None
    planted = layer(found, "diagonal").first_frame_difference
    assert_within(max(seen.first_frame_difference), 1e-6, planted=max(planted))
    assert_close(seen.kept_mass["2:6"], TileMask.parse("2:6", FRAMES).kept_share, atol=1e-5)


def test_global_frames_show_in_the_mask_that_has_them(found: Analysis):
    """The planted frames 0 and 4 are those of 2:6, which keeps more of the mass than a wider diagonal would."""
    assert TileMask.parse("2:6", FRAMES).global_frames == GLOBAL_FRAMES
    assert layer(found, "global").kept_mass["2:6"] > 0.95 > 0.8 > layer(found, "global").kept_mass["1:7"]


@pytest.mark.numerical
def test_what_repeats_and_what_holds(found: Analysis):
    """Equal places repeat and hold between prompts, seeds and steps; tokens of their own do neither."""
    stable, unstable = layer(found, "stable"), layer(found, "unstable")
    assert_close(stable.repetition_mean, 1, atol=1e-3)
    assert stable.repetition[-1] is None
    assert_within(stable.repetition_mean_error, 1e-4, planted=unstable.repetition_mean_error)
    assert_close(unstable.repetition_mean, 0, atol=0.05, planted=1)
    assert_close(unstable.repetition_elsewhere, 0, atol=0.05, planted=1)
    betweens = {(each.between, each.mass) for each in stable.stability}
    assert betweens == {(b, m) for b in ("prompts", "seeds", "steps") for m in (0.9, 0.95, 0.99)}
    for each in stable.stability:
        assert each.overlap > 0.999 > each.chance_overlap + 0.2
    for each in unstable.stability:
        assert_close(each.overlap, each.chance_overlap, atol=0.09, planted=1)
        assert_close(each.iou, each.chance_iou, atol=0.09, planted=1)


def test_what_is_written_down(found: Analysis):
    """Steps along the default sampler, seconds, memory, and where each sample came from."""
    told = found.settings
    assert (told.steps, told.scheduler, told.guidance) == (5, "ddim", 2.0)
    assert (told.steps_seen, told.at, told.seeds) == ((0, 2, 4), (0.1, 0.5, 0.9), (0, 5))
    assert told.prompts == ("3 over", "8 under", "5") and told.rows == 64 and told.kernel == "torch"
    assert [(each.prompt, each.seed) for each in found.samples[::3]] == [(0, 0), (1, 0), (2, 0), (0, 1)]
    assert set(found.seconds) == {"load", "text", "denoise", "statistics"}
    assert min(found.seconds.values()) > 0 and found.peak_memory_bytes > 0
    assert found.weights == PlantedBackbone.weights_digest and found.candidates == ("1:7", "2:6", "3:5", "4:4")
    assert [each.site for each in found.layers] == [f"layer {place}" for place in range(len(LAYERS))]


def test_the_file_holds_everything(found: Analysis, tmp_path: Path):
    """What is read is what was written; a file that lacks something is refused."""
    found.write(tmp_path / "analysis.json")
    assert Analysis.read(tmp_path) == found
    content = json.loads((tmp_path / "analysis.json").read_text(encoding="utf-8"))
    assert content["schema"] == "evdit.analysis/1"
    for key in ("layers", "samples", "grid"):
        (tmp_path / "less.json").write_text(json.dumps({k: v for k, v in content.items() if k != key}), "utf-8")
        with pytest.raises(EvditError, match=f"{key} is missing: an analysis needs it"):
            Analysis.read(tmp_path / "less.json")


def test_a_stopped_run_goes_on_at_the_next_prompt(prompts_file: str, monkeypatch: pytest.MonkeyPatch):
    """Whatever the place of the stop: the numbers of finished prompts stay, and the end is that of one go."""
    kinds, options = ("diagonal", "unstable"), {"prompts_file": prompts_file, "seeds": "0", "at": "0,0.6"}
    whole = run(PlantedBackbone(kinds), monkeypatch, "whole", **options)
    backbone = PlantedBackbone(kinds)
    for steps, finished in ((5, 1), (2, 1), (4, 2)):  # a text stage of one unit, then 3 steps a prompt
        with pytest.raises(Interrupted, match=f"{finished} of 3") as caught:
            run(backbone, monkeypatch, "parts", StopsAfter(steps), **options)
        assert caught.value.exit_code == INTERRUPTED
        assert json.loads(Path("parts/run.json").read_text("utf-8"))["state"] == "interrupted"
        assert all(site.attend is None for site in backbone.sites)
    parts = run(backbone, monkeypatch, "parts", **options)
    assert (parts.layers, parts.samples) == (whole.layers, whole.samples)
    assert not list(Path("parts/samples").glob("*.positions*")) and len(list(Path("parts/samples").iterdir())) == 3

    calls, told = len(backbone.batches), Silent()
    again = run(backbone, monkeypatch, "parts", told, **options)
    assert again == parts and len(backbone.batches) == calls and "parts is done already" in told.lines


@pytest.mark.parametrize(
    "name",
    ["samples/prompt-0000-seed-00.positions.safetensors", "samples/prompt-0001-seed-00.safetensors", "sites.json"],
)
@pytest.mark.parametrize("fault", ["cut short", "other bytes", "gone"])
def test_a_damaged_file_on_the_way_is_made_again(
    prompts_file: str, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
):
    """The same command gives what one go gives, and nothing that is whole is made twice."""
    kinds, options = ("diagonal",), {"prompts_file": prompts_file, "seeds": "0", "at": "0"}
    whole = run(PlantedBackbone(kinds), monkeypatch, "whole", **options)
    backbone = PlantedBackbone(kinds)

    def stopped(*_: object) -> None:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(analyzing, "put_together", stopped)
        run(backbone, monkeypatch, "parts", **options)
    file, calls = Path("parts") / name, len(backbone.batches)
    content = file.read_bytes()
    file.unlink()
    if fault != "gone":
        file.write_bytes(content[:-5] if fault == "cut short" else b"other bytes")
    again = run(backbone, monkeypatch, "parts", **options)
    assert again.layers == whole.layers
    assert len(backbone.batches) - calls == (0 if name == "sites.json" else 1)


def test_another_models_folder_is_refused(prompts_file: str, monkeypatch: pytest.MonkeyPatch):
    """Other weights, other rows: exit 2, naming what differs; nothing is touched."""
    options = {"prompts_file": prompts_file, "seeds": "0", "at": "0", "num_prompts": 1}
    run(PlantedBackbone(("bands",)), monkeypatch, **options)
    before = Path("run/analysis.json").read_bytes()
    other = PlantedBackbone(("bands",))
    other.weights_digest = "0123" * 16
    same = PlantedBackbone(("bands",))
    for backbone, changed, says in ((other, {}, "weights: was"), (same, {"rows": 8}, "rows: was")):
        with pytest.raises(EvditError, match=says) as caught:
            run(backbone, monkeypatch, **options, **changed)
        assert caught.value.exit_code == USAGE
    assert Path("run/analysis.json").read_bytes() == before


def test_nan_names_layer_and_step(prompts_file: str, monkeypatch: pytest.MonkeyPatch):
    """Exit 1, the run says that it failed, and the sites are as they were."""
    backbone = PlantedBackbone(("diagonal", "bands", "uniform"))
    backbone.poison = (1, 2)
    with pytest.raises(EvditError, match=r"queries of layer 1 are not finite in step 2") as caught:
        run(backbone, monkeypatch, prompts_file=prompts_file)
    assert caught.value.exit_code == FAILED
    assert json.loads(Path("run/run.json").read_text("utf-8"))["state"] == "failed"
    assert all(site.attend is None for site in backbone.sites)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": "0,17"}, "unknown layer '17': the model has layers 0 to 1"),
        ({"layers": "one"}, "unknown layer 'one'"),
        ({"layers": "1-0"}, "unknown layer '1-0'"),
        ({"layers": ""}, "unknown layer ''"),
        ({"at": "0.5,1.5"}, "'1.5' is no share"),
        ({"at": ""}, "'' is no share"),
        ({"at": "nan"}, "'nan' is no share"),
        ({"seeds": "0,-1"}, "'-1' is no seed"),
        ({"masks": "2:5"}, "is for 7 frames"),
        ({"masks": "dense"}, "is no mask"),
        ({"video_frames": 1}, "one latent frame"),
        ({"num_prompts": 4}, "4 prompts were asked for"),
        ({"num_prompts": 0}, "at least 1 is needed"),
        ({"scheduler": "dimm"}, "unknown scheduler 'dimm'"),
        ({"prompts_file": "nowhere.txt"}, "can't be read"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    prompts_file: str, monkeypatch: pytest.MonkeyPatch, options: dict, says: str
):
    """Exit 2, the rule, and no folder."""
    with pytest.raises(EvditError, match=says) as caught:
        run(PlantedBackbone(("bands", "global")), monkeypatch, **{"prompts_file": prompts_file, **options})
    assert caught.value.exit_code == USAGE and not Path("run").exists()


def test_models_without_3d_attention(prompts_file: str, monkeypatch: pytest.MonkeyPatch):
    """No sites, sites that see one frame at a time, and sites that are never called."""
    options = {"prompts_file": prompts_file, "num_prompts": 1}
    with pytest.raises(EvditError, match="has no 3D self-attention"):
        run(PlantedBackbone(()), monkeypatch, **options)
    flat = PlantedBackbone(("bands",))
    monkeypatch.setattr(flat.sites[0], "run", lambda grid, seeds: flat.sites[0].attend(*[torch.zeros(8, 16, 2, 4)] * 3))
    with pytest.raises(EvditError, match="layer 0 attends over 16 tokens with 16, the video has 128"):
        run(flat, monkeypatch, "flat", **options)
    silent = PlantedBackbone(("bands",))
    monkeypatch.setattr(silent.sites[0], "run", lambda grid, seeds: None)
    with pytest.raises(EvditError, match="never called"):
        run(silent, monkeypatch, "silent", **options)


def test_too_large_for_the_memory(prompts_file: str, monkeypatch: pytest.MonkeyPatch):
    """Exit 4 before anything is made, with the flags that would fit."""
    monkeypatch.setattr("vdit_cli.sampling.trajectory.free_bytes", lambda device: 40_000_000)
    backbone = PlantedBackbone(("bands",))
    backbone.bytes_of = {"text": 10, "transformer": 10, "vae": 45_000_000}
    with pytest.raises(EvditError, match="needs about") as caught:
        run(backbone, monkeypatch, prompts_file=prompts_file)
    assert caught.value.exit_code == 4 and caught.value.next_steps[0] == "--offload model"
    assert not Path("run").exists()
