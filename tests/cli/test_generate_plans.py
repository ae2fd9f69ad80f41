"""`evdit generate` with the plan that lies with the weights: worn unless --masks says otherwise, and never missed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_pipeline import copied, write_pipeline, write_transformer
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.errors import DONE, ENVIRONMENT, USAGE
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

PROMPT = "a red circle"
MADE = Architecture("OpenSoraT2V", 2, 2, 24)
MASKS = (TileMask.parse("1:2", 3), TileMask.dense(3))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a pipeline folder of ours."""
    return write_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def plan(tiny: Path) -> MaskPlan:
    """A plan searched on the tiny model's weights: 1:2 in one layer of two."""
    weights = weights_digest([tiny / "transformer" / "diffusion_pytorch_model.safetensors"])
    return MaskPlan("another name", VideoGrid(3, 2, 3), MASKS, weights, architecture=MADE)


@pytest.fixture
def command(tiny: Path, plan: MaskPlan) -> list[str]:
    """A video by a student of the tiny model, in a folder of its own below the current one, trained under the plan."""
    write_transformer(Path("student"), seed=7, metadata=Lineage((str(plan.searched_on),), plan.digest).metadata())
    plan.write("student")
    return ["generate", PROMPT, "--model", str(tiny), "--checkpoint", "student", "--overwrite", "-o", "out.mp4"]


@pytest.mark.parametrize(
    ("flags", "masks", "word", "said"),
    [
        ([], ["1:2", "3:0"], "1x3:0 1x1:2", "masks 1x3:0 1x1:2 by student/plan.json, seed 0"),
        (["--masks", "auto"], ["1:2", "3:0"], "1x3:0 1x1:2", "masks 1x3:0 1x1:2 by student/plan.json, seed 0"),
        (["--masks", "none"], ["3:0", "3:0"], "none", "full attention, seed 0"),
        (["--masks", "1:2"], ["1:2", "1:2"], "1:2", "masks 1:2, seed 0"),
    ],
)
def test_a_student_wears_the_plan_it_was_trained_under(evdit, command, plan, flags, masks, word, said):
    """The line beforehand and the receipt tell what was asked and what ran."""
    code, _, err = evdit(*command, *flags)
    assert code == DONE, err
    assert said in err.splitlines()[0]
    receipt = Receipt.read("out.json")
    assert [layer["mask"] for layer in receipt.ran.layers] == masks
    assert (receipt.asked["masks"], receipt.ran.masks) == (flags[1] if flags else "auto", word)
    assert (receipt.ran.plan == plan.digest) == (masks == ["1:2", "3:0"])


def test_a_student_without_the_plan_it_names_is_refused(evdit, command, plan):
    """Lost or another one, unless --masks says what to do."""
    Path("student/plan.json").rename("kept.json")
    code, _, err = evdit(*command)
    assert code == USAGE and not Path("out.mp4").exists()
    assert f"trained under the plan {plan.digest[:12]}, and no plan.json lies beside them" in err
    replace(plan, made_by={"by": "hand"}).write("student")
    code, _, err = evdit(*command)
    assert code == USAGE and "student/plan.json is another one" in err
    for masks in ("kept.json", "none"):
        code, _, err = evdit(*command, "--masks", masks)
        assert code == DONE, err


def test_a_plan_in_the_models_folder_is_worn(evdit, tiny, plan, tmp_path):
    """With auto; at another length it is refused in words."""
    plan.write(copied(tiny, tmp_path / "model"))
    code, _, err = evdit("generate", PROMPT, "--model", "model", "-o", "out.mp4")
    assert code == DONE, err
    assert [layer["mask"] for layer in Receipt.read("out.json").ran.layers] == ["1:2", "3:0"]
    code, _, err = evdit("generate", PROMPT, "--model", "model", "--frames", "5", "-o", "other.mp4")
    assert code == USAGE and "--masks none" in err and "model/plan.json" in err


def test_damaged_weights_are_not_told_to_go_without_masks(evdit, tiny, tmp_path):
    """They are asked for the plan that they wore; without one they are as damaged."""
    model = copied(tiny, tmp_path / "model")
    (model / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"version https://git-lfs")
    code, _, err = evdit("generate", PROMPT, "--model", "model", "-o", "out.mp4")
    assert code == ENVIRONMENT and "it is a git-lfs pointer" in err and "--masks" not in err
