"""The tuner's tasks, and that every mask is tuned anew within its time; the kernels themselves are stood in for."""

import json
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from tests.attention import tune_triton
from vdit_cli.tiles.mask import TileMask


def test_a_time_alone_names_every_shape() -> None:
    """Shapes whose masks exist; a shape of one's own has no limit."""
    seconds, tasks = tune_triton.asked_for(["240"])
    assert seconds == 240 and {task[3] for task in tasks} == {"96", "64", "48", "128"}
    assert all(TileMask.parse(name, int(frames)).frames == int(frames) for frames, *_, name in tasks)
    seconds, tasks = tune_triton.asked_for(["8", "3600", "24", "96", "bf16", "4:4,1:7"])
    assert seconds == float("inf") and [task[5] for task in tasks] == ["4:4", "1:7"]


def test_it_stops_in_time_and_says_what_it_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Masks of 30 seconds each within 100: three lines, and the rest by name."""
    now = [0.0]
    monkeypatch.setattr(tune_triton, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def takes_30_seconds(mask: TileMask, *_: object) -> dict:
        now[0] += 30
        return {"mask": mask.name}

    monkeypatch.setattr(tune_triton, "time_mask", takes_30_seconds)
    tune_triton.tune(["100"])
    told = capsys.readouterr()
    assert [json.loads(line)["mask"] for line in told.out.splitlines()] == ["1:7", "2:6", "4:4"]
    assert told.err.startswith("no time left for 24 3600 24 96 bf16 3:21, ")


def test_forgetting_leaves_no_choice_of_another_mask() -> None:
    """Neither in memory nor on disk: the next call tries every choice again."""
    kernel = SimpleNamespace(cache={"a key": "a choice"}, configs_timings={"a choice": [1.0]}, cache_results=True)
    tune_triton.forget(kernel)
    assert kernel.cache == {} and kernel.configs_timings == {} and kernel.cache_results is False
