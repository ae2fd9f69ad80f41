"""Batches that are learned from several times: which iteration sees which, and that the teacher answers once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distillation.recording import Call
from tests.distillation.small_mlcd import StopsAt
from tests.distillation.test_wiring import Lesson, lesson
from vdit_cli.distillation import teacher_answers
from vdit_cli.distillation.mlcd import Answer
from vdit_cli.distillation.teacher_answers import KEPT, Answers, drawn_in
from vdit_cli.errors import Interrupted

REUSED = {
    "iterations": 12,
    "teacher_reuse": 3,
    "teacher_points": (5,),
    "checkpoint_every": 1,
    "log_every": 1,
    "teacher_guidance": 1.0,
}


def test_batches_come_in_turns():
    """KEPT new ones, the same twice more in that order, then the next."""
    drawn = [drawn_in(i, 3) for i in range(6 * KEPT)]
    first, second = list(range(KEPT)), list(range(KEPT, 2 * KEPT))
    assert drawn == first * 3 + second * 3
    assert [drawn_in(i, 1) for i in range(3 * KEPT)] == list(range(3 * KEPT))


def teacher_and_student(calls: list[Call]) -> tuple[list[Call], list[Call]]:
    """The calls of the teacher, and of the student where it learns."""
    return [each for each in calls if each.who == "teacher"], [each for each in calls if each.has_grad]


@pytest.fixture
def few_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches in turn."""
    monkeypatch.setattr(teacher_answers, "KEPT", 2)


@pytest.mark.usefixtures("few_kept")
def test_the_teacher_answers_once_to_what_is_learned_from_thrice(tmp_path: Path):
    """Two batches in turn, three times each; noise, clips and times are theirs, and the target is the student's now."""
    made = lesson(tmp_path, **REUSED)
    teacher, student = teacher_and_student(made.calls)
    assert len(student) == 12 and len(teacher) == 4
    for i, learned in enumerate(student):
        asked = teacher[(0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3)[i]]
        assert torch.equal(learned.x, asked.x) and (learned.t, learned.texts) == (asked.t, asked.texts)
    assert not torch.equal(student[0].table, student[2].table), "it has learned in between"
    assert made.metrics[0]["loss"] != made.metrics[2]["loss"]


@pytest.mark.usefixtures("few_kept")
def test_a_target_of_before_is_not_taken_with_the_teachers_answer(tmp_path: Path):
    """With points in between the target network is asked each time, at the point that the teacher reached."""
    made = lesson(tmp_path, **REUSED)
    targets = [each for each in made.calls if each.who == "student" and not each.has_grad]
    assert len(targets) == 12
    assert torch.equal(targets[0].x, targets[2].x) and not torch.equal(targets[0].table, targets[2].table)


@pytest.mark.usefixtures("few_kept")
def test_another_grid_asks_the_teacher_anew(tmp_path: Path):
    """The curriculum's next points are other times of the same batch."""
    teacher, student = teacher_and_student(
        lesson(tmp_path, **{**REUSED, "iterations": 6, "teacher_points": (2, 5)}).calls
    )
    assert len(student) == 6
    assert len(teacher) == 4, "batches 0 and 1 by 2 points in iterations 0 to 2, by 5 points in 3 to 5"


@pytest.mark.usefixtures("few_kept")
@pytest.mark.parametrize("stopped_after", [3, 4, 7])
def test_a_resume_in_the_midst_of_a_turn_changes_nothing(tmp_path: Path, stopped_after: int):
    """Answers are no state: what is missing is asked again."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole = lesson(tmp_path / "whole", **REUSED)
    with pytest.raises(Interrupted):
        lesson(tmp_path / "halves", StopsAt(stopped_after), **REUSED)
    halves: Lesson = lesson(tmp_path / "halves", **REUSED)
    assert [each["loss"] for each in halves.metrics] == [each["loss"] for each in whole.metrics]


def test_answers_beyond_what_a_device_holds_wait_on_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """Each is the same number again, wherever it waited; a new turn forgets those before."""
    monkeypatch.setattr(teacher_answers, "HELD_BYTES", 100)
    answers, asked = Answers(), []

    def answer(number: float) -> Answer:
        asked.append(number)
        return Answer(torch.full((10,), number), torch.full((2,), -number))

    for number in (1.0, 2.0, 3.0, 1.0, 2.0, 3.0):
        told = answers.of(int(number), "part", lambda number=number: answer(number))
        assert told.x0.tolist() == [number] * 10 and told.x_u.tolist() == [-number] * 2
    assert asked == [1.0, 2.0, 3.0] and answers.held == 96
    answers.of(KEPT, "part", lambda: answer(4.0))
    assert len(answers.kept) == 1 and answers.held == 48
