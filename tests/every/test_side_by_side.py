"""docs/side_by_side.py with real processes: needs, lanes, GPUs, what is kept of failures, and going on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from vdit_cli.errors import EvditError

ROOT = Path(__file__).resolve().parents[2]
MEET = (
    "import pathlib, sys, time\n"
    "mine, other = map(pathlib.Path, sys.argv[1:])\n"
    "mine.touch()\n"
    "waited = 0\n"
    "while not other.exists() and waited < 6000:\n"
    "    time.sleep(0.01)\n"
    "    waited += 1\n"
    "sys.exit(not other.exists())\n"
)
"""Ends well only where another process is at work at the same time."""


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import side_by_side

    return side_by_side


@pytest.fixture
def done(jobs: ModuleType, tmp_path: Path) -> Callable:
    """Runs jobs, one a GPU and lane unless told otherwise; what it says, line by line."""
    said: list[str] = []

    def run(plan: list, gpus: tuple[str, ...] = ("0",), most: int = 1) -> list[str]:
        jobs.run_side_by_side(plan, gpus, {"a": most, "b": most}, tmp_path / "logs", said.append)
        return said

    return run


def appending(jobs: ModuleType, name: str, file: Path, *after: str, lane: str = "a"):
    """A job that writes its name behind what stands in a file."""
    words = (sys.executable, "-c", f"open({str(file)!r}, 'a').write('{name} ')")
    return jobs.Job(name, (jobs.Step(words),), lane, after)


def test_jobs_follow_what_they_need_and_else_their_order(jobs: ModuleType, done: Callable, tmp_path: Path):
    file = tmp_path / "order"
    names = ("one", "two", "three")
    said = done([appending(jobs, "zero", file), *(appending(jobs, name, file, "zero") for name in names)])
    assert file.read_text().split() == ["zero", *names]
    assert [line.split()[2] for line in said] == ["zero:", "one:", "two:", "three:"]


@pytest.mark.parametrize(("gpus", "most", "lanes"), [(("0",), 2, "aa"), (("0", "1"), 1, "aa"), (("0",), 1, "ab")])
def test_as_many_as_fit_are_at_work_at_once(
    jobs: ModuleType, done: Callable, tmp_path: Path, gpus: tuple[str, ...], most: int, lanes: str
):
    """In two places of a lane, on two GPUs, in two lanes."""
    places = [str(tmp_path / "first"), str(tmp_path / "second")]
    words = [(sys.executable, "-c", MEET, *each) for each in (places, places[::-1])]
    done([jobs.Job(f"job-{i}", (jobs.Step(words[i]),), lane) for i, lane in enumerate(lanes)], gpus, most)


def test_each_job_sees_its_own_gpu(jobs: ModuleType, done: Callable, tmp_path: Path):
    tell = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    steps = [
        (
            jobs.Step((sys.executable, "-c", MEET, str(tmp_path / mine), str(tmp_path / other))),
            jobs.Step((sys.executable, "-c", tell), tmp_path / f"gpu-{mine}"),
        )
        for mine, other in (("x", "y"), ("y", "x"))
    ]
    done([jobs.Job(str(i), each, "a") for i, each in enumerate(steps)], ("3", "5"))
    assert {(tmp_path / f"gpu-{name}").read_text().strip() for name in "xy"} == {"3", "5"}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell of cores")
def test_each_job_has_its_own_cores(jobs: ModuleType, done: Callable, tmp_path: Path):
    """Two at once on one GPU share its cores out; with one core, both have it."""
    here = jobs.cores_here()
    tell = "import os; print(*sorted(os.sched_getaffinity(0)))"
    steps = [
        (
            jobs.Step((sys.executable, "-c", MEET, str(tmp_path / mine), str(tmp_path / other))),
            jobs.Step((sys.executable, "-c", tell), tmp_path / f"cores-{mine}"),
        )
        for mine, other in (("x", "y"), ("y", "x"))
    ]
    done([jobs.Job(str(i), each, "a") for i, each in enumerate(steps)], most=2)
    told = [[int(core) for core in (tmp_path / f"cores-{name}").read_text().split()] for name in "xy"]
    half = len(here) // 2
    assert told == ([here[:half], here[half:]] if half else [here, here])


@pytest.mark.parametrize(
    ("cores", "of", "shares"),
    [(7, 3, [[0, 1], [2, 3], [4, 5, 6]]), (2, 3, [[0], [1], [0]]), (64, 1, [list(range(64))]), (0, 2, [[], []])],
)
def test_cores_are_shared_out(jobs: ModuleType, cores: int, of: int, shares: list[list[int]]):
    assert [list(jobs.share(range(cores), place, of)) for place in range(of)] == shares


def test_a_place_that_was_left_is_taken_again(jobs: ModuleType):
    running = [jobs.Running(jobs.Job("j", (), "a"), "0", place, None, 0.0) for place in (0, 2)]
    assert [jobs.free_place(running, *each) for each in (("0", "a"), ("0", "b"), ("1", "a"))] == [1, 0, 0]


def test_a_failure_stops_what_needs_it_and_the_same_call_goes_on(jobs: ModuleType, done: Callable, tmp_path: Path):
    """What was done is not done again, and what a failed command printed is no result."""
    file, gate = tmp_path / "order", tmp_path / "gate"
    says = f"import os, sys; print('half'); sys.exit(not os.path.exists({str(gate)!r}))"
    plan = [
        appending(jobs, "before", file),
        jobs.Job("broken", (jobs.Step((sys.executable, "-c", says), tmp_path / "told"),), "a"),
        appending(jobs, "needs", file, "broken"),
        appending(jobs, "other", file),
    ]
    with pytest.raises(EvditError, match=r"^broken failed; not begun: needs$"):
        done(plan)
    assert file.read_text().split() == ["before", "other"] and not (tmp_path / "told").exists()
    gate.touch()
    done(plan)
    assert file.read_text().split() == ["before", "other", "needs"]
    assert (tmp_path / "told").read_text() == "half\n"
    told = (tmp_path / "logs" / "broken.log").read_text().splitlines()
    assert len(told) == 2 and all(line.startswith("$ ") and line.endswith(f" > {tmp_path / 'told'}") for line in told)


def test_by_itself_it_says_what_it_is(jobs: ModuleType, capsys: pytest.CaptureFixture[str]):
    for words in ([], ["logs", "name"], ["some", "thing", "else"]):
        assert jobs.main(words) == 0 and capsys.readouterr().out.startswith("Commands that need a GPU each")


@pytest.mark.parametrize("needs", [(), ("later",), ("nothing",)])
def test_a_plan_that_can_not_end_is_refused(jobs: ModuleType, done: Callable, tmp_path: Path, needs: tuple[str, ...]):
    """A name twice, a need that comes later, and one that is not there."""
    file = tmp_path / "order"
    plan = [appending(jobs, "one", file), appending(jobs, "one" if not needs else "two", file, *needs)]
    with pytest.raises(EvditError, match="is there twice, or needs one that does not stand before it"):
        done([*plan, appending(jobs, "later", file)])
    assert not file.exists()
