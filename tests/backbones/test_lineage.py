"""What weights say of their past: there and back through metadata, and the plan that must lie with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vdit_cli.backbones.lineage import Lineage
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

PLAN = MaskPlan("tiny", VideoGrid(3, 2, 3), (TileMask.parse("1:2", 3),))


def weights(file: Path, metadata: dict[str, str] | None) -> Path:
    """A safetensors file with that metadata."""
    save_file({"weight": torch.zeros(2)}, file, metadata)
    return file


@pytest.mark.parametrize("lineage", [Lineage(), Lineage(("ab" * 32,)), Lineage(("ab" * 32, "ef" * 32), "cd" * 32)])
def test_it_survives_metadata(tmp_path: Path, lineage: Lineage):
    """Beside what others say there."""
    assert Lineage.read(weights(tmp_path / "own", {**lineage.metadata(), "format": "pt"})) == lineage
    assert Lineage.read(weights(tmp_path / "other", {"format": "pt"})) == Lineage()
    assert Lineage.read(weights(tmp_path / "silent", None)) == Lineage()


@pytest.mark.parametrize("text", ["", "ab", '"ab"', "[1]", "{}", None])
def test_damaged_metadata_is_refused(tmp_path: Path, text: str | None):
    """Another value than a list of digests, and a file that is cut short."""
    file = weights(tmp_path / "weights", {"evdit.lineage": "[]" if text is None else text})
    if text is None:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EvditError, match="weights is damaged") as caught:
        Lineage.read(file)
    assert caught.value.exit_code == ENVIRONMENT


def test_the_plan_must_be_the_one_that_was_worn(tmp_path: Path):
    """The first folder that has one decides; weights that name none take what lies there."""
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    folders = (near, far)
    worn, other = Lineage(plan=PLAN.digest), Lineage(plan="0" * 64)
    assert Lineage().worn(folders) is None
    with pytest.raises(EvditError, match=r"no plan\.json lies beside them") as caught:
        worn.worn(folders)
    assert caught.value.exit_code == USAGE and "--masks none" in caught.value.next_steps
    PLAN.write(far)
    assert worn.worn(folders) == Lineage().worn(folders) == PLAN
    with pytest.raises(EvditError, match="is another one") as caught:
        other.worn(folders)
    assert caught.value.where == str(near)
    PLAN.write(near)
    found = worn.worn(folders)
    assert found is not None and found.origin == str(near / "plan.json")
