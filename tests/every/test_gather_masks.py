"""docs/gather_masks.py on scores made up here, whose figures can be counted by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.search.made import table_of, times_of
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.attention.presets import PRESETS
from vdit_cli.errors import EvditError
from vdit_cli.search.mask_costs import Call
from vdit_cli.search.plan_costs import call_of
from vdit_cli.tiles.plan import MaskPlan

ROOT = Path(__file__).resolve().parents[2]
LOSSES = np.random.default_rng(1).uniform(0.5, 2, (8, 1)) * [0, 0.01, 0.05, 0.1]
PROMPTS = 20
SECONDS = {"8:0": 1.0, "4:4": 0.9, "2:6": 0.5, "1:7": 0.25}


@pytest.fixture
def gather(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import gather_masks

    return gather_masks


@pytest.fixture
def folders(gather: ModuleType, tmp_path: Path) -> Path:
    """Search and plans of one model, and the seconds of its call in Open-Sora-Plan's size."""
    import mask_plans

    table = table_of(LOSSES)
    for name in ("masks/base", "plans", "scores/base"):
        (tmp_path / name).mkdir(parents=True)
    table.write(tmp_path / "masks/base")
    mask_plans.main([str(tmp_path / "masks/base"), str(tmp_path / "plans/base")])
    preset = PRESETS["open-sora-plan-29"]
    call = Call(preset.grid, preset.heads, preset.head_dim, call_of(table).batch, "bfloat16")
    times_of(call, SECONDS).write(tmp_path / "costs.json")
    return tmp_path


def write_score(folder: Path, name: str, wrong: int, residual: float = 1.0) -> None:
    """A score of PROMPTS videos, the first `wrong` of which fail in their motion; the last one could not be fitted."""
    videos = [
        {
            "prompt": f"prompt {i}",
            "seed": i,
            "right": {"all five": i >= wrong, "motion": i >= wrong},
            "fit": {"overlap": 0.5, "residual": residual} if i < PROMPTS - 1 else None,
        }
        for i in range(PROMPTS)
    ]
    write_json(folder / "scores" / "base" / f"{name}.json", {"videos": videos})


def gathered(gather: ModuleType, folder: Path) -> Mapping[str, Sequence[Mapping[str, object]]]:
    """The rows of each table."""
    found = gather.gather(*(folder / name for name in ("scores", "plans", "masks")), [str(folder / "costs.json")])
    return {name: table["rows"] for name, table in found["tables"].items()}


def test_searched_plans_stand_beside_uniform_and_random_ones(gather: ModuleType, folders: Path):
    """By their kept share, differences being of the same videos."""
    for name, wrong in {"dense": 0, "uniform-2:6": 10, "budget-attention-2:6": 5, "r-3": 4}.items():
        write_score(folders, name, wrong)
    for seed in range(5):
        write_score(folders, f"random-3-{seed}", 2 * seed + 4)
    equal = gathered(gather, folders)["base-equal"]
    found = {row["name"]: (row["beside"], str(row["more"])[:6]) for row in equal}
    assert found == {
        "budget-attention-2:6": ("uniform-2:6", "+0.250"),
        "r-3": ("random-3, mean of 5", "+0.200"),
    }


def test_every_plan_has_a_row(gather: ModuleType, folders: Path):
    """With its share, what its masks take in seconds, and the mean of what can be fitted; random ones together."""
    for name, wrong in {"dense": 0, "uniform-2:6": 10, "uniform-1:7": 20, "first-2-uniform-1:7": 3}.items():
        write_score(folders, name, wrong, residual=1.0 + wrong)
    for seed in range(5):
        write_score(folders, f"random-3-{seed}", seed)
    write_score(folders, "drawn-53-0", 1)
    rows = {row["name"]: row for row in gathered(gather, folders)["base-plans"]}
    assert list(rows)[0] in ("dense", "first-2-uniform-1:7") and "drawn-53-0" not in rows
    assert [rows[name]["speedup"] for name in ("dense", "uniform-2:6", "uniform-1:7")] == [1, 2, 4]
    assert (rows["dense"]["kept"], rows["uniform-1:7"]["kept"]) == (1, 22 / 64)
    assert rows["first-2-uniform-1:7"]["kept"] is None and str(rows["first-2-uniform-1:7"]["five"])[:5] == "0.850"
    assert rows["random-3, mean of 5"]["five"] == "0.900 (0.800 to 1.000)"
    assert (rows["uniform-2:6"]["motion"], rows["uniform-2:6"]["residual"]) == (0.5, 11)


def test_ranks_of_plans_that_do_what_was_foretold(gather: ModuleType, folders: Path):
    """Damage that grows with the summed loss correlates fully; damage that falls with it, fully the other way."""
    plans = {path.stem: MaskPlan.read(path) for path in (folders / "plans" / "base").glob("drawn-*.json")}
    for share, sign in (("53", 1), ("44", -1)):
        names = sorted(
            (name for name in plans if name.startswith(f"drawn-{share}-")),
            key=lambda name: float(plans[name].predicted["loss"]),
        )
        for place, name in enumerate(names):
            write_score(folders, name, 3, residual=10 + sign * place / 10)
    rows = {(row["by"], row["share"]): row for row in gathered(gather, folders)["base-ranks"]}
    assert rows["attention", 0.53]["residual"] == "+1.00 [+1.00, +1.00]"
    assert rows["attention", 0.44]["residual"] == "-1.00 [-1.00, -1.00]"
    assert rows["relative", 0.53]["residual"] == "+1.00 [+1.00, +1.00]"  # half the loss of every mask
    assert rows["attention", 0.53]["all five"] == "-" and rows["attention", 0.53]["plans"] == 30


def test_what_does_not_fit_is_told(gather: ModuleType, folders: Path):
    """Other videos, a score of no plan, no score at all, three words."""
    with pytest.raises(EvditError, match="holds no score"):
        gather.main([str(folders / name) for name in ("scores", "plans", "masks", "costs.json")])
    write_score(folders, "dense", 0)
    path = folders / "scores" / "base" / "uniform-2:6.json"
    write_json(path, {"videos": json.loads((path.parent / "dense.json").read_text())["videos"][:5]})
    with pytest.raises(EvditError, match="are not those of dense"):
        gathered(gather, folders)
    path.rename(path.with_name("other.json"))
    write_score(folders, "other", 0)
    with pytest.raises(EvditError, match="other is no plan"):
        gathered(gather, folders)
    write_json(path.with_name("other.json"), {"videos": [1]})
    with pytest.raises(EvditError, match=r"other.json does not hold what is read of it: .*int"):
        gathered(gather, folders)
    with pytest.raises(EvditError, match="3 words were given"):
        gather.main(["a", "b", "c"])


def test_a_report_is_of_the_same_plans_and_each_model_has_its_own_costs(gather: ModuleType, folders: Path):
    """Scores of other seeds in a folder of their own; a table without the model's branches is passed over."""
    write_score(folders, "dense", 0)
    (folders / "scores" / "base").rename(folders / "scores" / "base-report")
    preset = PRESETS["open-sora-plan-29"]
    times_of(Call(preset.grid, preset.heads, preset.head_dim, 7, "bfloat16"), SECONDS).write(folders / "other.json")
    names = [folders / name for name in ("scores", "plans", "masks")]
    other, costs = str(folders / "other.json"), str(folders / "costs.json")
    found = gather.gather(*names, [other, costs])
    assert [row["name"] for row in found["tables"]["base-report-plans"]["rows"]] == ["dense"]
    with pytest.raises(EvditError):
        gather.gather(*names, [other])
