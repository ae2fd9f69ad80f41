"""When a student counts as collapsed: limits written out."""

import numpy as np
import pytest

from tests.closeness import assert_close
from vdit_cli.distillation.watch import Look, collapse_of
from vdit_cli.measures import motion, sharpness

TEACHER, FIRST = Look(0.01, 0.02, 0.0), Look(0.008, 0.02, 0.5)


@pytest.mark.parametrize("now", [FIRST, TEACHER, Look(0.039, 0.079, 1.9), Look(0.0026, 0.0051, 0.1)])
def test_what_stays_within_the_factor_is_sound(now):
    assert collapse_of(now, FIRST, TEACHER, 4.0) is None


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (Look(0.041, 0.02, 0.5), "sharpness is 0.041, 4.1 times the teacher's"),
        (Look(0.0024, 0.02, 0.5), "sharpness is 0.0024"),
        (Look(0.01, 0.0, 0.5), "motion is 0"),
        (Look(0.01, 0.02, 2.1), "the gap to the teacher is 2.1"),
        (Look(0.01, 0.02, float("nan")), "gap is nan"),
    ],
)
def test_what_leaves_it_is_told(now, told):
    assert told in collapse_of(now, FIRST, TEACHER, 4.0)


def test_a_student_that_began_outside_may_stay_there_but_not_go_further():
    blurred = Look(0.001, 0.02, 0.5)
    assert collapse_of(Look(0.0011, 0.02, 0.5), blurred, TEACHER, 4.0) is None
    assert "sharpness" in collapse_of(Look(0.0009, 0.02, 0.5), blurred, TEACHER, 4.0)


@pytest.mark.numerical
def test_a_look_is_the_mean_of_its_videos():
    videos = [np.random.default_rng(seed).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8) for seed in range(2)]
    look = Look.of(videos, 0.3)
    assert_close(look.sharpness, (sharpness(videos[0]) + sharpness(videos[1])) / 2)
    assert_close(look.motion, (motion(videos[0]) + motion(videos[1])) / 2)
    assert look.gap == 0.3
