"""docs/make_masks.py: its commands are ones that evdit takes, and docs/gather_masks.py takes what they leave."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.every.test_documented_commands import faults, flags_by_command
from tests.every.test_gather_masks import ROOT, folders, gather, write_score  # noqa: F401
from vdit_cli.errors import EvditError


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_masks

    return make_masks


def test_what_is_made_can_be_gathered(
    masks: ModuleType,
    gather: ModuleType,  # noqa: F811
    folders: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    """Plans of two models, each score made up in its place; every command is one that evdit takes."""
    student, made, known = folders / "four", folders / "made", flags_by_command()
    student.mkdir()

    def instead(jobs: Sequence, gpus: Sequence[str], lanes: dict, logs: Path, say: object) -> None:
        for job in jobs:
            assert job.lane in lanes
            for step in job.steps:
                if step.words[1].endswith("mask_plans.py"):
                    Path(step.words[3]).parent.mkdir(parents=True, exist_ok=True)
                    Path(step.words[3]).symlink_to(folders / "plans" / "base")
                    Path(step.words[2]).parent.mkdir(parents=True, exist_ok=True)
                    Path(step.words[2]).symlink_to(folders / "masks" / "base")
                    continue
                assert tuple(step.words[:3]) == (sys.executable, "-m", "vdit_cli")
                assert not faults(" ".join(step.words[3:]), known)
                if step.to:
                    step.to.parent.mkdir(parents=True, exist_ok=True)
                    write_score(folders, "one", 3)
                    (folders / "scores" / "base" / "one.json").rename(step.to)

    monkeypatch.setattr(masks, "run_side_by_side", instead)
    said: list[str] = []
    monkeypatch.setattr(masks, "say", said.append)
    masks.make(made, student, masks.Sizes(), ("0",))
    words = said[-1].split()
    assert words[:2] == ["python", "docs/gather_masks.py"]
    costs = [str(folders / "costs.json")]
    tables = gather.gather(*map(Path, words[2:5]), costs)["tables"]
    kinds = ("plans", "equal", "ranks")
    assert set(tables) == {f"{name}-{kind}" for name in ("base", "four") for kind in kinds} | {
        f"{name}-report-{kind}" for name in ("base", "four") for kind in ("plans", "equal")
    }
    names = {row["name"] for row in tables["four-plans"]["rows"]}
    assert {"first-1-r-3", "first-1-uniform-1:7", "dense", "random-5, mean of 5"} <= names
    assert "first-12-r-3" in {row["name"] for row in tables["base-plans"]["rows"]}


def test_a_student_that_is_not_there(masks: ModuleType, tmp_path: Path):
    with pytest.raises(EvditError, match="is no student that is there"):
        masks.main([str(tmp_path), str(tmp_path / "nothing")])
