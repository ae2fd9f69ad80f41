"""`evdit run` as a person runs it: stdout, JSON, the recipe of minutes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.tiny import STAGES, write_inputs
from vdit_cli.pipeline.run import check_stages, works_of
from vdit_cli.recipe import load

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def test_a_run_tells_its_folder_or_where_each_stage_is(tmp_path: Path, evdit):
    words = [*write_inputs(tmp_path), "--set", "run.stages=[prepare_data,search_masks]"]
    code, out, err = evdit(*words)
    assert (code, out) == (0, "run\n")
    headings = [line for line in err.splitlines() if line.startswith("stage ")]
    assert headings == [
        "stage 1 of 2: prepare-data in run/prepare-data",
        "stage 2 of 2: search-masks in run/search-masks",
    ]
    assert err.index("preparing clips: 16/16") < err.index(headings[1]), "a stage's last line stands in its own part"
    code, out, _ = evdit(*words, "--json")
    told = json.loads(out)
    assert (code, told["schema"], told["state"]) == (0, "evdit.run-status/1", "done")
    assert [(each["command"], each["state"]) for each in told["stages"]] == [(name, "done") for name in STAGES[::2][:2]]


def test_both_recipes_of_shapes_name_all_stages(monkeypatch):
    """The one for a GPU, which tests/pipeline runs at a tiny size, and that of minutes on a CPU."""
    monkeypatch.chdir(RECIPES.parent)
    for name in ("shapes", "shapes-small"):
        recipe = load(RECIPES / f"{name}.yaml")
        check_stages(recipe)
        assert [work.folder.name for work in works_of(recipe, Path("run"), False)] == list(STAGES)


def test_without_a_place_the_run_of_the_day_is_gone_on_with(tmp_path: Path, evdit):
    words = [word for word in write_inputs(tmp_path) if word != "-o"]
    words = [words[0], words[1], *words[3:], "--set", "run.stages=[prepare_data]"]
    code, out, _ = evdit(*words)
    assert code == 0 and out.startswith("runs/") and out.strip().endswith("-run-model")
    code, again, err = evdit(*words)
    assert (code, again) == (0, out) and "prepare-data is done already" in err


def test_a_recipe_is_asked_for(evdit):
    code, _, err = evdit("run")
    assert code == 2 and "RECIPE" in err
    code, _, err = evdit("run", "gone.yaml")
    assert code == 2 and "gone.yaml can't be read" in err
    assert "  from:  gone.yaml\n" in err and "--config" not in err
