"""`evdit status` as a person reads it: a table, the reason of a failure, the next command."""

from __future__ import annotations

import json

import pytest

from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.errors import EvditError


def test_the_table_tells_state_progress_and_what_to_type(evdit):
    """Of a whole with a stage that failed and one that was not begun; several results by their folder."""
    whole = RunDir.create("run", Request("run", "shapes", {}, origins={"a": "my.yaml:3 search_masks.r"}))
    whole.manifest["stages"] = [{"folder": name} for name in ("search-masks", "generate")]
    values = {"prompts": ["a", "b"], "seeds": "0,1"}
    stage = RunDir.create("run/search-masks", Request("search-masks", "shapes", values))
    with pytest.raises(EvditError), whole, stage:
        for file in ("plan.json", "sensitivity.json"):
            (stage.path / file).write_text("{}", encoding="utf-8")
            stage.add_output(file, file)
        (stage.path / "samples").mkdir()
        (stage.path / "samples" / "pair-0000.json").write_text("{}", encoding="utf-8")
        stage.manifest["seconds"] = 70.0
        raise EvditError("the disk is full", exit_code=1)
    code, out, _ = evdit("status", "run")
    head, columns, search, generate, why, then = out.splitlines()
    assert code == 0 and (head, why) == ("run: failed", "why: the disk is full")
    assert columns.split() == ["stage", "state", "progress", "time", "made"]
    assert search.split() == ["search-masks", "failed", "1/4", "trajectories", "1", "min", "10", "s"] + [
        "run/search-masks"
    ]
    assert generate.split() == ["generate", "not", "begun", "-", "-", "-"]
    assert then == "next: evdit run my.yaml -o run"
    code, out, _ = evdit("status", "run/search-masks", "--json")
    told = json.loads(out)
    assert (told["schema"], told["command"], told["failure"]) == (
        "evdit.run-status/1",
        "search-masks",
        "the disk is full",
    )
    assert told["stages"][0]["progress"] == {"done": 1, "of": 4, "unit": "trajectories"}
