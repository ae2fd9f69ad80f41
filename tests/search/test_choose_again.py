"""Another plan from a table that is there: without torch, in a run of its own, with a copy of the table."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.analysis.planted import StopsAfter
from tests.search.made import table_of, times_of
from vdit_cli.attention.costs import CostTable
from vdit_cli.errors import EvditError, Interrupted
from vdit_cli.recipe import SearchMasksOptions, load
from vdit_cli.search.choose_again import CHOOSING, choose_again
from vdit_cli.search.plan_costs import call_of
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.plan import EDITED, MaskPlan
from vdit_cli.timing import Silent


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A folder with a table of two layers."""
    folder = tmp_path / "measured"
    folder.mkdir()
    table_of([[0, 0.02, 0.06, 0.3], [0, 0.15, 0.3, 0.9]]).write(folder)
    return folder


def test_a_plan_of_another_rule(measured: Path, tmp_path: Path):
    """The plan and the table lie in the new run; asked again it is done, for another rule it is refused."""
    options = SearchMasksOptions(sensitivity=str(measured), r=0.05)
    found = choose_again(options, tmp_path / "again", Silent())
    assert [mask.name for mask in found.plan.masks] == ["4:4", "8:0"]
    assert MaskPlan.read(tmp_path / "again") == found.plan
    assert SensitivityTable.read(tmp_path / "again").digest == SensitivityTable.read(measured).digest
    assert choose_again(options, tmp_path / "again", Silent()).plan == found.plan
    with pytest.raises(EvditError, match="r: was 0.05"):
        choose_again(SearchMasksOptions(sensitivity=str(measured)), tmp_path / "again", Silent())


def test_the_table_of_a_run_is_what_counts_not_its_place(measured: Path, tmp_path: Path):
    """The same table from elsewhere goes on; another one is another run."""
    choose_again(SearchMasksOptions(sensitivity=str(measured)), tmp_path / "again", Silent())
    moved = measured.rename(tmp_path / "moved")
    choose_again(SearchMasksOptions(sensitivity=str(moved)), tmp_path / "again", Silent())
    table_of([[0, 0.03, 0.06, 0.3], [0, 0.15, 0.3, 0.9]]).write(moved)
    with pytest.raises(EvditError, match="table: was"):
        choose_again(SearchMasksOptions(sensitivity=str(moved)), tmp_path / "again", Silent())


def test_options_of_a_measurement_have_no_effect_and_are_refused(measured: Path, tmp_path: Path):
    """Each of them, from a flag or from a recipe; nothing is made."""
    flags = {"search_masks.sensitivity": str(measured), "search_masks.steps": 4}
    with pytest.raises(EvditError, match="--steps 4 has no effect with --sensitivity"):
        choose_again(load(None, (), flags).search_masks, tmp_path / "again", Silent())
    sets = [f"search_masks.sensitivity={measured}", "search_masks.seeds=3"]
    with pytest.raises(EvditError, match="seeds=3 has no effect"):
        choose_again(load(None, sets, {}).search_masks, tmp_path / "again", Silent())
    assert not (tmp_path / "again").exists() and set(CHOOSING) <= set(SearchMasksOptions().values())


def test_what_a_recipe_file_says_of_measuring_is_left_aside(measured: Path, tmp_path: Path):
    """The file may be the one that the table was measured by: it goes on, and says so."""
    file = tmp_path / "recipe.yaml"
    file.write_text("search_masks:\n  r: 0.05\n  steps: 4\n  at: '0.5'\n", encoding="utf-8")
    progress = Silent()
    options = load(file, (), {"search_masks.sensitivity": str(measured)}).search_masks
    found = choose_again(options, tmp_path / "again", progress)
    assert [mask.name for mask in found.plan.masks] == ["4:4", "8:0"]
    assert progress.lines == ["without effect, as the table was measured already: at, steps of the recipe"]


def test_a_choice_that_takes_long_is_shown_and_can_be_stopped(measured: Path, tmp_path: Path):
    """By a budget each resample is a knapsack; by a threshold nobody waits."""
    stops = StopsAfter(3)
    with pytest.raises(Interrupted):
        choose_again(SearchMasksOptions(sensitivity=str(measured), max_loss=0.1), tmp_path / "again", stops)
    assert not (tmp_path / "again").exists()
    choose_again(SearchMasksOptions(sensitivity=str(measured)), tmp_path / "again", StopsAfter(3))


def test_an_edited_plan_is_not_replaced(measured: Path, tmp_path: Path):
    """A person's own, sealed in the run: the same choice refuses to write over it."""
    options = SearchMasksOptions(sensitivity=str(measured), r=0.05)
    plan = choose_again(options, tmp_path / "again", Silent()).plan
    file = replace(plan, made_by={"command": EDITED}).write(tmp_path / "again")
    before = file.read_bytes()
    with pytest.raises(EvditError, match="the plan was edited and sealed"):
        choose_again(options, tmp_path / "again", Silent())
    assert file.read_bytes() == before


def test_a_folder_without_a_table(tmp_path: Path):
    with pytest.raises(EvditError, match=r"sensitivity"):
        choose_again(SearchMasksOptions(sensitivity=str(tmp_path)), tmp_path / "again", Silent())


def test_a_plan_by_the_times_of_a_machine(measured: Path, tmp_path: Path):
    """The times are what counts, not where they lie; other ones are another run."""
    call = call_of(SensitivityTable.read(measured))
    times = {"8:0": 4.0, "4:4": 3.5, "2:6": 2.0, "1:7": 1.0}
    file = times_of(call, times).write(tmp_path / "costs.json")
    options = SearchMasksOptions(sensitivity=str(measured), costs=str(file), latency=5.0)
    found = choose_again(options, tmp_path / "again", Silent())
    assert [mask.name for mask in found.plan.masks] == ["1:7", "8:0"] and found.choice.cost == 5
    assert found.plan.made_by["latency"] == 5 and found.plan.made_by["costs"] == CostTable.load(file).digest
    moved = replace(options, costs=str(file.rename(tmp_path / "moved.json")))
    assert choose_again(moved, tmp_path / "again", Silent()).plan == MaskPlan.read(tmp_path / "again") == found.plan
    times_of(call, {**times, "1:7": 1.5}).write(tmp_path / "moved.json")
    with pytest.raises(EvditError, match="costs: was"):
        choose_again(moved, tmp_path / "again", Silent())


def test_neither_a_model_nor_torch_is_loaded(measured: Path, tmp_path: Path):
    """By the command line, in a process of its own."""
    times = dict.fromkeys(("8:0", "4:4", "2:6", "1:7"), 1.0)
    costs = times_of(call_of(SensitivityTable.read(measured)), times).write(tmp_path / "costs.json")
    command = ["evdit", "search-masks", "--sensitivity", str(measured), "--costs", str(costs)]
    program = (
        "import sys; from vdit_cli.__main__ import main\n"
        f"sys.argv = {[*command, '-o', str(tmp_path / 'again')]!r}\n"
        "try: code = main()\n"
        "except SystemExit as ended: code = ended.code\n"
        "assert not code, code\n"
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again/plan.json").exists()
