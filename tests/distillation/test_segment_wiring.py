"""Milestones, shares of segments and the amount of data reach every call of a real distillation, and nothing else.

As in test_wiring.py all that is expected is computed from the calls before, in float64.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.closeness import assert_close
from tests.distillation import test_wiring
from tests.distillation.recording import SHAPE, WEIGHTS, Call, Recorder, distill_recorded, write_recorded
from tests.distillation.test_wiring import Iteration, Lesson, lesson, losses_of, pair_of, prepared
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.distillation.student_networks import Pair
from vdit_cli.timing import Silent

PLACED = (999, 599, 299, 99)
POINTS = (2, 2, 5, 5)
"""The teacher's points in each of the four iterations."""


def segment_of(t: int) -> int:
    """The segment that a time stands in, from the noisiest."""
    return next(m for m, below in enumerate((*PLACED[1:], -1)) if t > below)


def times_below(t: tuple[int, ...], points: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """u and tau of the times t: segments are 400, 300, 200 and 100 timesteps long, which 2 and 5 points divide."""
    tau = tuple((*PLACED[1:], -1)[segment_of(each)] for each in t)
    apart = tuple((400, 300, 200, 100)[segment_of(each)] // points for each in t)
    assert all((each - low) % step == 0 for each, low, step in zip(t, tau, apart, strict=True)), f"{t}: not on the grid"
    return tuple(each - step for each, step in zip(t, apart, strict=True)), tau


def terms_of(made: Iteration, points: int) -> tuple[Tensor, Tensor]:
    """The losses (B,) of three calls, and the segment of each sample."""
    below, tau = times_below(made.student.t, points)
    return losses_of(made.target, made.student, below, tau), torch.tensor([segment_of(t) for t in made.student.t])


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """Milestones of our own, the last segment drawn as often as the others together."""
    changes = {"milestones": PLACED, "segment_shares": (1, 1, 1, 3), "batch_size": 64}
    return lesson(tmp_path_factory.mktemp("placed"), guidance="kept", null_share=0.0, **changes)


def test_milestones_move_the_times_and_the_sampler(placed: Lesson):
    """t on the teacher's grid between them, the target asked at the point below; the student keeps them."""
    for (_, target, student), points in zip(placed.iterations, POINTS, strict=True):
        below, _ = times_below(student.t, points)
        assert target.t == tuple(max(each, 0) for each in below)
    fine = {t for each in placed.iterations[2:] for t in each.student.t}
    assert 15 < len(fine) <= 20 and {*PLACED, 19} <= fine, "of the grid next to all, its ends too"
    assert Sampler.read(placed.run / "student").timesteps == PLACED


def test_segments_are_drawn_as_often_as_asked(placed: Lesson):
    """Of 256 samples 43 are expected in each but the last, which has 128."""
    drawn = [segment_of(t) for each in placed.iterations for t in each.student.t]
    assert len(drawn) == 256 and 110 < drawn.count(3) < 146
    assert all(25 < drawn.count(m) < 60 for m in range(3))


@pytest.mark.numerical
def test_metrics_tell_the_loss_of_each_segment(placed: Lesson):
    """Against what is expected to fall into it, and of the milestones that were asked for."""
    for made, points, told in zip(placed.iterations, POINTS, placed.metrics, strict=True):
        loss_B, segment_B = terms_of(made, points)
        shares = torch.tensor([1, 1, 1, 3], dtype=torch.float64) / 6
        expected = torch.stack([loss_B[segment_B == m].sum() for m in range(4)]) / 64 / shares
        found = torch.tensor([told[f"loss_segment_{m}"] for m in range(4)], dtype=torch.float64)
        assert_close(found, expected, rtol=1e-3)
        assert_close(told["loss"], loss_B.mean().item(), rtol=1e-3)


def held_calls(made: Lesson) -> list[Iteration]:
    """The three calls on the held-out clips in each iteration: none of them has gradients."""
    threes = [Iteration(*made.calls[i : i + 3]) for i in range(0, len(made.calls), 3)]
    return [each for each in threes if not each.student.has_grad]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> list[Lesson]:
    """33 clips, 4 held out: trained on all, on the first two, and on the first three with other shares."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_wiring, "CLIPS", 33)
        fixed = {"held_out": 4, "guidance": "kept", "null_share": 0.0, "milestones": PLACED, "learning_rate": 0.0}
        return [
            lesson(tmp_path_factory.mktemp("compared"), **fixed, **changes)
            for changes in ({}, {"clips": 2}, {"clips": 3, "segment_shares": (1, 1, 1, 9)})
        ]


def test_the_first_clips_alone_are_trained_on(compared: list[Lesson]):
    for made, count in zip(compared, (29, 2, 3), strict=True):
        learned = {text for call in made.calls if call.has_grad for text in call.texts}
        assert learned <= set(range(1, count + 1)) and (count > 3 or len(learned) == count)


@pytest.mark.numerical
def test_held_out_losses_of_trainings_on_other_data_are_comparable(compared: list[Lesson]):
    """The same four clips, noise and times, one in each segment; exact means of each in the metrics."""
    same: list[Call] = []
    for made in compared:
        held = held_calls(made)
        assert len(held) == 4 and all(each.student.texts == (30, 31, 32, 33) for each in held)
        assert all([segment_of(t) for t in each.student.t] == [0, 1, 2, 3] for each in held)
        same = same or [each.student for each in held]
        assert all(torch.equal(one.x, each.student.x) for one, each in zip(same, held, strict=True))
        for each, points, told in zip(held, POINTS, made.metrics, strict=True):
            expected, _ = terms_of(each, points)
            found = torch.tensor([told[f"held_out_loss_segment_{m}"] for m in range(4)], dtype=torch.float64)
            assert_close(found, expected, rtol=1e-3)
            assert_close(told["held_out_loss"], expected.mean().item(), rtol=1e-3)
            assert told["held_out_distance"] > 0


def test_previews_are_sampled_at_the_students_own_milestones(tmp_path: Path):
    """Not at those of the student that it starts from."""
    calls: list[Call] = []
    pair = pair_of(calls)
    pair.student.scheduler_config = {**pair.student.scheduler_config, "milestones": (999, 500, 300, 100)}
    options = {"iterations": 1, "previews": 1, "teacher_points": (2,), "collapse_factor": 1e9}
    for name, given, expected in (("even", (), (999, 749, 499, 249)), ("placed", PLACED, PLACED)):
        calls.clear()
        distill_recorded(pair, prepared(tmp_path / f"{name}-data"), tmp_path / name, milestones=given, **options)
        looks = [call.t for call in calls if call.who == "student" and len(call.t) == 1]
        assert looks == [(t,) for t in expected] * 2, "before the first iteration and after the last"


@pytest.mark.parametrize(("first", "doubts"), [(999, 0), (899, 1)])
def test_a_first_milestone_below_pure_noise_is_doubted(tmp_path: Path, first: int, doubts: int):
    """It is taken, since a sampler may well begin there."""
    progress = Silent()
    made = lesson(tmp_path, progress, milestones=(first, *PLACED[1:]), iterations=1, teacher_points=(1,))
    assert sum(f"warning: milestones begin at {first}: " in line for line in progress.lines) == doubts
    assert {t for call in made.calls if call.has_grad for t in call.t} <= {first, *PLACED[1:]}


def test_the_curriculum_has_the_shares_that_were_asked_for(tmp_path: Path):
    """Three of four iterations with 2 points a segment, the last with 5."""
    made = lesson(tmp_path, milestones=PLACED, teacher_shares=(3, 1))
    for (_, target, student), points in zip(made.iterations, (2, 2, 2, 5), strict=True):
        assert target.t == tuple(max(each, 0) for each in times_below(student.t, points)[0])


def learnt(folder: Path, **changes) -> Tensor:
    """The student's table after 12 iterations on 32 clips of ordinary size."""
    table = torch.rand(33, 1000, generator=torch.Generator().manual_seed(0)) - 0.5
    pair = Pair(Recorder("teacher", table, []), Recorder("student", torch.zeros_like(table), []))
    data = write_recorded(folder / "data", torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(1)))
    options = {"iterations": 12, "batch_size": 32, "learning_rate": 0.05, "huber_c": 0.5, "teacher_points": (2, 5)}
    return load_file(distill_recorded(pair, data, folder / "run", **{**options, **changes}) / WEIGHTS)["table"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """What is learnt without any change."""
    return learnt(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_points": (5,)},
        {"teacher_shares": (3, 1)},
        {"target": "average"},
        {"huber_c": 0.1},
        {"guidance": "kept"},
        {"teacher_guidance": 3.0},
        {"milestones": PLACED},
        {"segment_shares": (1, 1, 1, 5)},
        {"clips": 2},
        {"batch_size": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_can_be_ablated_changes_what_is_learnt(tmp_path: Path, plain: Tensor, change: dict):
    """By far more than rounding, below 1e-6. (Adam takes a factor from a free number: test_wiring.py has the cap.)"""
    assert (learnt(tmp_path, **change) - plain).abs().max() > 1e-3
