"""`evdit generate` from every kind of model: published folders, a hub, a run's transformer, and plans that fit them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.backbones.open_sora_plan.opened import opened
from tests.closeness import assert_close
from tests.hub_stand_in import StandIn, ask_here, serving
from tests.tiny_pipeline import copied, write_pipeline, write_published, write_transformer
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.artifacts.video_file import read_video
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.backbones.open_sora_plan.offload import Parts
from vdit_cli.errors import DONE, ENVIRONMENT, USAGE
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

PROMPT = "a large red circle moving right over black"
SMALL = ["--frames", "9", "--height", "32", "--width", "48", "--steps", "2"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in the published layout, its text encoder in mt5-xxl/."""
    return write_published(tmp_path_factory.mktemp("published") / "model", with_text=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of ours."""
    return write_pipeline(tmp_path_factory.mktemp("tiny") / "model")


def digest_of(transformer: Path) -> str:
    """The digest of a transformer's one file of weights."""
    return weights_digest([transformer / "diffusion_pytorch_model.safetensors"])


def trained_run(folder: Path, lineage: tuple[str, ...]) -> Path:
    """A finished training run whose transformer descends from weights of the given digests."""
    with RunDir.create(folder, Request("distill-kd", "tiny", {"seed": 0})) as run:
        write_transformer(folder / "student", seed=7, metadata=Lineage(lineage).metadata())
        run.add_output("transformer", "student")
    return folder


def plan_for(weights: str | None, folder: Path) -> Path:
    """A plan of two layers for the tiny model, searched on the weights of that digest."""
    masks = (TileMask.parse("1:2", 3), TileMask.dense(3))
    return MaskPlan("tiny", VideoGrid(3, 2, 3), masks, weights).write(folder / "plan.json")


def test_the_published_layout_takes_the_folder_that_fits_the_frames(evdit, published):
    code, out, err = evdit("generate", PROMPT, "--model", str(published), "-o", "short.mp4", *SMALL)
    assert (code, out) == (DONE, "short.mp4\n"), err
    receipt = Receipt.read("short.json")
    assert receipt.ran.model == "open-sora-plan"
    assert receipt.ran.weights == digest_of(published / "29x720p")
    assert receipt.asked["scheduler"] == "euler-ancestral" and receipt.asked["guidance"] == 7.5
    assert read_video("short.mp4")[0].shape == (9, 32, 48, 3)
    assert "open-sora-plan was made for 29 frames" in err
    code, _, err = evdit(
        "generate", PROMPT, "--model", str(published), "-o", "long.gif", *SMALL, "--frames", "93", "--guidance", "1"
    )
    assert code == DONE, err
    receipt = Receipt.read("long.json")
    assert (receipt.ran.model, receipt.ran.weights) == ("open-sora-plan-93", digest_of(published / "93x720p"))
    assert len(read_video("long.gif")[0]) == 93
    assert "open-sora-plan-93 was made for 720 x 1280 pixels" in err and "was made for 93 frames" not in err


def test_only_the_files_that_are_loaded_are_the_weights(evdit, tiny, tmp_path):
    """An old shard, averaged weights and strays beside them change neither digest, video nor receipt."""
    copy = copied(tiny, tmp_path / "copy")
    digest = digest_of(tiny / "transformer")
    for part in ("transformer", "vae", "text_encoder"):
        weights = next((copy / part).glob("*.safetensors"))
        for name in ("junk.safetensors", "ema.safetensors", f"{weights.stem}-00001-of-00002.safetensors"):
            (copy / part / name).write_bytes(weights.read_bytes())
    (copy / "transformer" / "broken.safetensors").write_bytes(b"none")
    assert opened(copy).weights_digest == digest
    for part in ("vae", "text"):
        assert opened(copy).part_digest(part) == opened(tiny).part_digest(part)
    code, _, err = evdit("generate", PROMPT, "--model", str(copy), "-o", "out.mp4")
    assert code == DONE, err
    assert Receipt.read("out.json").ran.weights == digest


def test_damaged_weights_are_found_before_anything_is_sampled(evdit, tiny, tmp_path, monkeypatch):
    """For one file too: no part is made resident."""
    copy = copied(tiny, tmp_path / "copy")
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    monkeypatch.setattr(Parts, "resident", lambda *_: pytest.fail("a part was loaded"))
    code, _, err = evdit("generate", PROMPT, "--model", str(copy), "-o", "out.mp4")
    assert code == ENVIRONMENT
    assert f"{weights} is damaged" in err
    assert not Path("out.mp4").exists()


def test_a_hub_id_fetches_what_it_needs_and_generates(evdit, published, tmp_path, monkeypatch):
    """The second time without the hub."""
    command = ["generate", PROMPT, "--model", "own/tiny", *SMALL, "--json"]
    with serving(StandIn({"own/tiny": published})) as hub:
        ask_here(hub.url, tmp_path, monkeypatch)
        code, out, err = evdit(*command, "-o", "a.mp4")
        assert code == DONE, err
        (video,) = json.loads(out)["videos"]
        assert video["receipt"]["ran"]["weights"] == digest_of(published / "29x720p")
        assert video["receipt"]["asked"]["model"] == "own/tiny"
        assert "fetching" in err and "of own/tiny" in err
        assert {name.split("/")[0] for name in hub.fetched} == {"29x720p", "vae", "mt5-xxl"}
    code, _, err = evdit(*command, "-o", "b.mp4")
    assert code == DONE, err
    assert "the hub does not answer" in err
    assert (read_video("a.mp4")[0] == read_video("b.mp4")[0]).all()


def test_a_runs_transformer_replaces_the_models_own(evdit, tiny, tmp_path):
    student = trained_run(tmp_path / "run", ("ab" * 32,))
    code, _, err = evdit("generate", PROMPT, "--model", str(tiny), "-o", "base.mp4")
    assert code == DONE, err
    for name, place in (("run.mp4", student), ("folder.mp4", student / "student")):
        code, _, err = evdit("generate", PROMPT, "--model", str(tiny), "--checkpoint", str(place), "-o", name)
        assert code == DONE, err
        receipt = Receipt.read(Path(name).with_suffix(".json"))
        assert receipt.ran.weights == digest_of(student / "student")
        assert receipt.asked["checkpoint"] == str(place)
    assert (read_video("run.mp4")[0] == read_video("folder.mp4")[0]).all()
    assert (read_video("run.mp4")[0] != read_video("base.mp4")[0]).any()


def test_a_checkpoint_that_is_none(evdit, tiny, tmp_path):
    with RunDir.create(tmp_path / "search", Request("search-masks", "tiny", {"r": 0.1})):
        plan_for(None, tmp_path / "search")
    write_pipeline(tmp_path / "run" / "model")
    with RunDir(tmp_path / "run", Request("train-shapes", "shapes", {"seed": 0}).manifest()) as run:
        run.add_output("model", "model")
    for place, says in (("search", "made no transformer"), ("run", "--model run"), (".", "--checkpoint .")):
        code, _, err = evdit("generate", PROMPT, "--model", str(tiny), "--checkpoint", place, "-o", "out.mp4")
        assert code == USAGE
        assert says in err
    assert not Path("out.mp4").exists()


def test_a_plan_holds_for_the_weights_it_was_searched_on_and_for_those_that_came_from_them(evdit, tiny, tmp_path):
    base = digest_of(tiny / "transformer")
    student = trained_run(tmp_path / "student", (base,))
    stranger = trained_run(tmp_path / "stranger", ("cd" * 32,))
    plan = plan_for(base, tmp_path)
    command = ["generate", PROMPT, "--model", str(tiny), "--masks", str(plan), "--overwrite", "-o", "out.mp4"]
    bare = copied(student / "student", tmp_path / "bare")
    for flags in (
        [],
        ["--checkpoint", str(student)],
        ["--checkpoint", str(bare)],
        ["--checkpoint", str(stranger), "--allow-other-weights"],
    ):
        code, _, err = evdit(*command, *flags)
        assert code == DONE, err
        ran = Receipt.read("out.json").ran
        assert [layer["mask"] for layer in ran.layers] == ["1:2", "3:0"]
        assert ran.plan == MaskPlan.read(plan).digest
    Path("out.mp4").unlink()
    for place in (stranger, stranger / "student"):
        code, _, err = evdit(*command, "--checkpoint", str(place))
        assert code == USAGE
        assert f"the plan was searched on weights {base[:12]}" in err and "--allow-other-weights" in err
    assert not Path("out.mp4").exists()


@pytest.mark.parametrize(
    ("layers", "heads", "grid", "says"),
    [
        (2, 6, (3, 2, 3), "the plan is for OpenSoraT2V of 2 layers of 6 heads x 24 (shapes), not for OpenSoraT2V of 2"),
        (3, 2, (3, 2, 3), "the plan has 3 layers, tiny has 2"),
        (2, 2, (8, 8, 8), "it is for 8 latent frames of 8 x 8"),
    ],
)
def test_a_plan_for_something_else_is_refused(evdit, tiny, tmp_path, layers, heads, grid, says):
    made = Architecture("OpenSoraT2V", layers, heads, 24)
    MaskPlan.uniform("shapes", VideoGrid(*grid), made, TileMask.dense(grid[0])).write(tmp_path / "plan.json")
    code, _, err = evdit("generate", PROMPT, "--model", str(tiny), "--masks", "plan.json", "-o", "out.mp4")
    assert code == USAGE
    assert says in err and "plan.json" in err
    assert not Path("out.mp4").exists()


@pytest.mark.numerical
def test_a_run_that_made_a_plan_is_taken_as_one(evdit, tiny, tmp_path):
    with RunDir.create(tmp_path / "search", Request("search-masks", "tiny", {"r": 0.1})):
        plan_for(None, tmp_path / "search")
    code, _, err = evdit("generate", PROMPT, "--model", str(tiny), "--masks", "search", "-o", "out.mp4")
    assert code == DONE, err
    assert_close(Receipt.read("out.json").ran.kept_share, (7 / 9 + 1) / 2)
