"""A student that is planted as so many steps of its teacher is told to be worth as many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.closeness import assert_close
from tests.distillation.prepared import write_data
from tests.distillation.small_mlcd import distill_small
from vdit_cli.diffusion.milestones import CLEAN, signal_and_noise
from vdit_cli.diffusion.prediction import target
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.mlcd import Networks, Predict, straight
from vdit_cli.distillation.mlcd_job import idle_options
from vdit_cli.distillation.segment_errors import SegmentError, segment_errors, segment_squares, told_worth
from vdit_cli.recipe import load

SCHEDULE = NoiseSchedule.from_config({})
TIMES = (999, 679, 279, CLEAN)
TRUTH = 32


def teacher(x: Tensor, t_B: Tensor) -> Tensor:
    """v of data whose clean values are -1 or 1: a path that bends, E[x0 | x_t] = tanh(a x / s^2)."""
    a, s = signal_and_noise(SCHEDULE, t_B)
    x0 = torch.tanh(a * x / s.square())
    return target("v", x0, (x - a * x0) / s, a, s)


def worth_so_many(steps: int) -> Predict:
    """A student whose step from each of TIMES lands where so many of the teacher's DDIM steps do, or the truth's."""

    def predict(x: Tensor, t_B: Tensor) -> Tensor:
        end = TIMES[TIMES.index(int(t_B[0])) + 1]
        x0, _ = straight(
            teacher, "v", SCHEDULE, x, t_B, torch.full_like(t_B, end), steps, order=2 if steps == TRUTH else 1
        )
        a, s = signal_and_noise(SCHEDULE, t_B)
        return target("v", x0, (x - a * x0) / s, a, s)

    return predict


def errors_of(student: Predict, truth: int = TRUTH) -> list[SegmentError]:
    """Of a student on a few clips."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(0, 2, (4, 2, 3, 4, 4), generator=generator).double() * 2 - 1
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    squares = segment_squares(Networks(student, student, teacher), "v", SCHEDULE, x0, eps, TIMES, truth)
    return segment_errors({name: float(value) for name, value in squares.items()}, TIMES)


@pytest.mark.numerical
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_planted_student_is_worth_its_steps(steps: int):
    for error in errors_of(worth_so_many(steps)):
        assert_close(error.worth, steps, planted=2 * steps)
        assert_close(error.student, error.teacher[steps], planted=error.teacher[2 * steps])


def test_more_steps_of_the_teacher_are_nearer():
    """In every segment, and a student between two counts stands between them."""
    for error in errors_of(worth_so_many(3)):
        assert sorted(error.teacher.values(), reverse=True) == [error.teacher[count] for count in (1, 2, 4, 8)]
        assert 2 < error.worth < 4


def test_the_truth_is_worth_all_that_was_tried():
    errors = errors_of(worth_so_many(TRUTH))
    assert [(each.start, each.end) for each in errors] == [(999, 679), (679, 279), (279, CLEAN)]
    assert all(each.student < each.teacher[8] / 1000 for each in errors)
    assert all(each.worth == 8 and told_worth(each) == "at least 8" for each in errors)


@pytest.mark.numerical
def test_worth_is_read_between_counts_and_beyond():
    """By logarithms between, by the inverse below; a teacher without errors divides by nothing."""
    teacher_errors = {1: 0.8, 2: 0.4, 4: 0.1}
    for student, worth in ((0.8, 1.0), (1.6, 0.5), (0.4, 2.0), (0.2, 2 * 2**0.5), (0.1, 4.0), (0.01, 4.0)):
        assert_close(SegmentError(9, 3, student, teacher_errors).worth, worth, planted=1.01 * worth)
    assert SegmentError(9, 3, 0.0, {1: 0.0, 2: 0.0}).worth == 1 and SegmentError(9, 3, 0.1, {1: 0.4, 2: 0.0}).worth == 2


def test_few_steps_of_truth_are_held_against_fewer():
    assert [list(each.teacher) for each in errors_of(worth_so_many(1), truth=4)] == [[1, 2]] * 3
    assert errors_of(worth_so_many(1), truth=1) == []


def test_a_finished_student_tells_how_near_it_is(made: tuple[Path, Path], tmp_path: Path):
    """In segments.json, in its card and in words; the same by a second training, nothing where nobody asked."""
    made = made[0], write_data(tmp_path / "data", made[0], 16)  # at most an eighth is held out
    student = distill_small(*made, tmp_path / "run", held_out=2, truth_steps=6)
    found = json.loads((tmp_path / "run" / "segments.json").read_text(encoding="utf-8"))
    assert found["schema"] == "evdit.segment-errors/1"
    assert [(each["start"], each["end"]) for each in found["segments"]] == [
        (999, 749),
        (749, 499),
        (499, 249),
        (249, -1),
    ]
    assert all(list(each["teacher"]) == ["1", "2", "4"] and each["student"] > 0 for each in found["segments"])
    assert "| a step is worth, of the teacher's | " in (student / "README.md").read_text(encoding="utf-8")
    distill_small(*made, tmp_path / "again", held_out=2, truth_steps=6)
    assert json.loads((tmp_path / "again" / "segments.json").read_text(encoding="utf-8")) == found
    distill_small(*made, tmp_path / "none", held_out=2)
    assert not (tmp_path / "none" / "segments.json").exists()


def test_without_held_out_clips_it_is_said_to_be_idle():
    sets = ["distill_mlcd.truth_steps=8", "distill_mlcd.held_out=0"]
    [line] = idle_options(load(None, sets, {}).distill_mlcd)
    assert line == "--set distill_mlcd.truth_steps=8 has no effect: no clip is held out"
