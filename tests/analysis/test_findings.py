"""What an analysis may say: intervals that hold the truth as often as they claim."""

import numpy as np
import pytest

from tests.closeness import assert_close
from vdit_cli.analysis.findings import margin
from vdit_cli.analysis.results import Sample


def samples_of(trajectories: int, steps: int) -> list[Sample]:
    """Samples of so many prompts, the same seed and steps of each."""
    return [Sample(prompt, 0, step) for prompt in range(trajectories) for step in range(steps)]


@pytest.mark.parametrize("trajectories", [2, 4, 12])
def test_the_interval_of_a_ratio_holds_the_truth(trajectories: int) -> None:
    """In 90 to 99 of 100 draws, of trajectories whose steps are alike: steps are no samples of their own."""
    draw, truth, steps = np.random.default_rng(trajectories), 1.5, 3
    held = []
    for _ in range(1000):
        ratios = truth + 0.3 * draw.normal(size=(trajectories, 1)) + 0.05 * draw.normal(size=(trajectories, steps))
        half = margin(ratios.ravel().tolist(), samples_of(trajectories, steps))
        held.append(abs(ratios.mean() - truth) <= half)
    assert 0.9 <= np.mean(held) <= 0.99


@pytest.mark.numerical
def test_the_interval_by_its_formula() -> None:
    """Two prompts with two seeds: Student's t of 3 degrees of freedom, from a printed table, over four means."""
    samples = [Sample(prompt, seed, step) for prompt in range(2) for seed in range(2) for step in range(2)]
    ratios = [1.0, 3.0, 2.0, 4.0, 3.0, 5.0, 4.0, 6.0]
    assert_close(margin(ratios, samples), 3.182446 * np.std([2.0, 3.0, 4.0, 5.0], ddof=1) / 2, rtol=1e-6)


def test_one_trajectory_tells_of_no_other() -> None:
    assert margin([1.0, 2.0, 3.0], samples_of(1, 3)) == 0
