"""What weights say of their past: there and back through metadata, and the plan that must lie with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdit_cli.backbones.lineage import Lineage
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

PLAN = MaskPlan("tiny", VideoGrid(3, 2, 3), (TileMask.parse("1:2", 3),))


@pytest.mark.parametrize("plan", [None, "cd" * 32])
@pytest.mark.parametrize("weights", [(), ("ab" * 32,), ("ab" * 32, "ef" * 32)])
def test_it_survives_metadata(weights: tuple[str, ...], plan: str | None):
    """Metadata holds texts alone; those of others are left aside."""
    lineage = Lineage(weights, plan)
    metadata = lineage.metadata()
    assert all(isinstance(text, str) for text in metadata.values())
    assert Lineage.of({**metadata, "format": "pt"}, "weights") == lineage
    assert Lineage.of({"format": "pt"}, "weights") == Lineage()


@pytest.mark.parametrize("text", ["", "ab", '"ab"', "[1]", "{}"])
def test_damaged_metadata_is_refused(text: str):
    with pytest.raises(EvditError, match="no list of digests") as caught:
        Lineage.of({"evdit.lineage": text}, "weights")
    assert (caught.value.exit_code, caught.value.where) == (ENVIRONMENT, "weights")


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
