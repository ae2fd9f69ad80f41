"""What is asked of a distillation is checked before anything loads."""

from __future__ import annotations

import re
import shlex

import pytest

from vdit_cli.distillation.mlcd_job import check_times, step_counts
from vdit_cli.distillation.student_job import check_parts
from vdit_cli.errors import USAGE, EvditError, quoted
from vdit_cli.recipe import load


@pytest.mark.parametrize(
    ("batch", "parts", "ranks", "where", "steps"),
    [
        (3, 4, 1, "--set distill_mlcd.accumulation=4", ["batch_size=4", "accumulation=3"]),
        (5, 2, 3, "--set distill_mlcd.accumulation=2", ["batch_size=6", "accumulation=1", "--gpus 2"]),
        (3, 1, 4, "--set distill_mlcd.batch_size=3", ["batch_size=4", "--gpus 3"]),
        (1, 2, 2, "--set distill_mlcd.accumulation=2", ["batch_size=4", "--gpus 1 --set distill_mlcd.accumulation=1"]),
    ],
)
def test_more_parts_than_clips_are_told_as_they_are_typed(
    batch: int, parts: int, ranks: int, where: str, steps: list[str]
):
    """The value that is to blame by its flag; each step offered fits, alone."""
    given = [f"distill_mlcd.batch_size={batch}", *([f"distill_mlcd.accumulation={parts}"] if parts > 1 else [])]
    with pytest.raises(EvditError, match=f"batch_size is {batch}: .* need at least {parts * ranks} clips") as caught:
        check_parts(load(None, given, {}).distill_mlcd, ranks)
    assert caught.value.exit_code == USAGE and caught.value.where == where
    flags = [step if step.startswith("--") else f"--set distill_mlcd.{step}" for step in steps]
    assert list(caught.value.next_steps) == flags
    for flag in flags:
        words = flag.split()
        sets = [word for word in words if "=" in word]
        here = int(words[words.index("--gpus") + 1]) if "--gpus" in words else ranks
        check_parts(load(None, [*given, *sets], {}).distill_mlcd, here)


def test_ranks_are_to_blame_where_nothing_was_set():
    """The batch and the parts are the defaults."""
    options = load(None, [], {}).distill_mlcd
    with pytest.raises(EvditError) as caught:
        check_parts(options, options.batch_size + 1)
    assert caught.value.where == f"{options.batch_size + 1} ranks (--gpus, torchrun)"


@pytest.mark.parametrize(
    ("given", "what", "where", "steps"),
    [
        ({"steps": "1001"}, "steps is '1001': the noise schedule has", "steps", ["--steps 20"]),
        ({"steps": "2000,4", "teacher_points": "[1]"}, "steps is '2000,4': the", "steps", ["--steps 20"]),
        ({"steps": "300"}, "300 steps of 25 teacher points", "steps", ["teacher_points=[2,3]", "--steps 40"]),
        (
            {"steps": "300", "teacher_points": "[2,5]", "teacher_shares": "[1,1]"},
            "300 steps of 5 teacher points are 1500 points",
            "teacher_points",
            ["teacher_points=[2,3]", "--steps 200"],
        ),
        (
            {"steps": "4", "teacher_points": "[5]", "teacher_substeps": "51"},
            "4 steps of 5 teacher points with 51 substeps each are 1020: the noise schedule has 1000",
            "teacher_substeps",
            ["teacher_substeps=50"],
        ),
        (
            {"steps": "4", "teacher_points": "[300]", "teacher_substeps": "2"},
            "4 steps of 300 teacher points are 1200 points",
            "teacher_points",
            ["teacher_points=[125]", "--steps 1"],
        ),
        ({"steps": "4", "teacher_points": "[2000]"}, "are 8000 points", "teacher_points", ["teacher_points=[250]"]),
    ],
)
def test_more_times_than_the_schedule_has_are_told_where_they_were_set(
    given: dict[str, str], what: str, where: str, steps: list[str]
):
    """Each step offered fits, alone."""
    sets = [f"distill_mlcd.{key}={value}" for key, value in given.items()]
    options = load(None, sets, {}).distill_mlcd
    with pytest.raises(EvditError, match=re.escape(what)) as caught:
        check_times(options, step_counts(options), 1000)
    flags = [step if step.startswith("--") else f"--set {quoted('distill_mlcd.' + step)}" for step in steps]
    assert (caught.value.exit_code, list(caught.value.next_steps)) == (USAGE, flags)
    assert caught.value.where == f"--set {quoted(f'distill_mlcd.{where}={given[where]}')}"
    for flag, value in map(shlex.split, flags):
        setting = value if flag == "--set" else f"distill_mlcd.steps={value}"
        fits = load(None, [*sets, setting], {}).distill_mlcd
        check_times(fits, step_counts(fits), 1000)


def test_as_many_points_as_timesteps_fit():
    """40 steps of 25."""
    check_times(load(None, [], {}).distill_mlcd, (40, 2), 1000)


@pytest.mark.parametrize(
    ("steps", "advised"), [("4,8", "8,4"), ("20,999999", "20"), ("20,20,4,41", "20,4"), ("300,999999", "40")]
)
def test_steps_that_do_not_fall_are_told_as_they_would_fit(steps: str, advised: str):
    """In order, without those that the usual schedule has no room for, or as many as it has."""
    with pytest.raises(EvditError, match="each student must have fewer steps than the one before it") as caught:
        step_counts(load(None, [f"distill_mlcd.steps={steps}"], {}).distill_mlcd)
    assert caught.value.next_steps == (f"--steps {advised}",)
