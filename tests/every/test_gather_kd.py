"""docs/gather_kd.py on scores made up here, whose figures can be counted by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.every.test_documented_commands import faults, flags_by_command
from tests.every.test_gather_masks import PROMPTS, ROOT, folders, gather  # noqa: F401
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.errors import EvditError

WRONG = {
    "dense": 1,
    "uniform-1:7": 15,
    "uniform-1:7-kd": 3,
    "uniform-2:6-kd": 2,
    "budget-attention-2:6-kd": 1,
    "r-3-kd": 2,
    "r-3-kd-first": 6,
}


@pytest.fixture
def gather_kd(gather: ModuleType) -> ModuleType:  # noqa: F811
    """The script as a module."""
    import gather_kd

    return gather_kd


def write_score(folder: Path, name: str, wrong: int) -> None:
    """A score of PROMPTS videos, the first `wrong` of which fail in their motion, circling in the first half."""
    right = [i >= wrong for i in range(PROMPTS)]
    videos = [
        {"prompt": f"p {i}", "seed": i, "right": {"all five": each, "motion": each}, "fit": None}
        for i, each in enumerate(right)
    ]
    circling = right[: PROMPTS // 2]
    near = {} if name == "dense" else {"against": {"closeness": {"psnr": {"value": 20.0 + wrong}}}}
    measures = {"overlap": 0.9, "residual": 1.0, "frame motion": 0.01, "flicker": 0.001}
    content = {
        "accuracy": {"motion": {"share": sum(right) / PROMPTS}},
        "estimates": {"motion: circling": {"value": sum(circling) / len(circling)}},
        "frechet": None,
        "measures": measures,
        "videos": videos,
    }
    write_json(folder / "kd" / f"{name}.json", content | near)


def gathered(script: ModuleType, folder: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The rows of each table."""
    (folder / "kd").mkdir(exist_ok=True)
    for name, wrong in WRONG.items():
        write_score(folder, name, wrong)
    found = script.gather(*(folder / name for name in ("kd", "plans/base", "masks/base")), str(folder / "costs.json"))
    return {name: table["rows"] for name, table in found["tables"].items()}


def test_what_kd_brings_back_stands_beside_what_was_lost(gather_kd: ModuleType, folders: Path):  # noqa: F811
    """Plans in the order of what they keep, differences to the dense student's videos of the same prompts."""
    rows = gathered(gather_kd, folders)["plans"]
    kept = [row["kept"] for row in rows]
    assert rows[0]["name"] == "dense" and kept == sorted(kept, reverse=True) and len(rows) == 5
    last = rows[-1]
    assert (last["name"], last["kept"], last["speedup"]) == ("uniform-1:7", 22 / 64, 4)
    assert [last[key][:6] for key in ("before", "after", "differs")] == ["0.250 ", "0.850 ", "-0.100"]
    assert rows[1]["before"] is None, "nobody scored it before KD"


def test_searched_and_uniform_masks_are_held_against_each_other_after_kd(
    gather_kd: ModuleType,
    folders: Path,  # noqa: F811
):
    tables = gathered(gather_kd, folders)
    [equal] = tables["equal"]
    assert (equal["name"], equal["beside"], equal["more"][:6]) == ("budget-attention-2:6", "uniform-2:6", "+0.050")
    [order] = tables["orders"]
    assert (order["name"], order["usual"][:5], order["first"][:5], order["differs"][:6]) == (
        "r-3",
        "0.900",
        "0.700",
        "-0.200",
    )


def test_nearness_and_motions_have_their_tables(gather_kd: ModuleType, folders: Path):  # noqa: F811
    tables = gathered(gather_kd, folders)
    measures = {row["name"]: row for row in tables["measures"]}
    assert measures["uniform-1:7-kd"]["psnr"] == 23 and "psnr" not in measures["dense"]
    circling = next(row for row in tables["motions"] if row["motion"] == "circling")
    assert circling["uniform-1:7-kd"] == 0.7 and circling["dense"] == 0.9 and "uniform-1:7" not in circling


def test_what_is_made_can_be_gathered(gather_kd: ModuleType, folders: Path):  # noqa: F811
    """Every score that a job of docs/make_kd.py leaves, made up here; its commands are ones that evdit takes."""
    import make_kd
    import side_by_side

    known, plans = flags_by_command(), folders / "plans" / "base"
    asked = make_kd.Folders(folders / "made", folders / "four", plans, folders / "data")
    here = tuple(name.replace("-output-", "-attention-") for name in make_kd.PLANS)  # this search has no such score
    jobs = make_kd.jobs(asked, make_kd.Sizes(plans=here))
    side_by_side.check(jobs)
    (folders / "kd").mkdir()
    for job in jobs:
        for step in job.steps:
            assert not faults(" ".join(step.words[3:]), known)
            if step.to and step.to.parent.name == "scores-report":
                write_score(folders, step.to.stem, 1)
        masks = [word for step in job.steps for word in step.words if word.startswith(str(plans))]
        assert all(Path(each).is_file() for each in masks)
    found = gather_kd.gather(folders / "kd", plans, folders / "masks/base", str(folders / "costs.json"))
    assert set(found["tables"]) == {"plans", "measures", "motions", "equal", "orders"}
    assert len(found["tables"]["plans"]["rows"]) == 1 + len(make_kd.PLANS)


def test_what_does_not_fit_is_told(gather_kd: ModuleType, folders: Path):  # noqa: F811
    """No dense student, a score of no plan, something else, a word too few."""
    gathered(gather_kd, folders)
    dense = folders / "kd" / "dense.json"
    for path, content, says in (
        (folders / "kd" / "other-kd.json", None, "other is no plan"),
        (folders / "kd" / "dense.json", {"videos": []}, "no video"),
    ):
        before = path.read_bytes() if path.exists() else None
        if content is None:
            path.write_bytes(dense.read_bytes())
        else:
            write_json(path, content)
        with pytest.raises(EvditError, match=says):
            gather_kd.gather(
                *(folders / name for name in ("kd", "plans/base", "masks/base")), str(folders / "costs.json")
            )
        path.unlink() if before is None else path.write_bytes(before)
    dense.unlink()
    with pytest.raises(EvditError, match=r"has no dense\.json"):
        gather_kd.gather(*(folders / name for name in ("kd", "plans/base", "masks/base")), str(folders / "costs.json"))
    with pytest.raises(EvditError, match="3 words were given"):
        gather_kd.main(["a", "b", "c"])
