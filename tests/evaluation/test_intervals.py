"""Intervals against closed forms: a proportion, equal and shifted pairs, videos that belong together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy import stats

from tests.closeness import assert_close
from vdit_cli.evaluation import intervals
from vdit_cli.evaluation.intervals import differences, estimate, tail

pytestmark = pytest.mark.numerical


def half_width(values: list[float], groups: list[int]) -> float:
    """Half of the interval's width; of more resamples, whose own chance is then a hundredth."""
    low, high = estimate({"x": values}, groups, resamples=40_000)["x"].interval
    return (high - low) / 2


def test_a_proportion_has_the_normal_interval():
    """.3 of 2,000: 1.96 deviations of a binomial each way, to a twentieth."""
    right = [1.0] * 600 + [0.0] * 1400
    found = estimate({"x": right}, range(2000))["x"]
    deviation = (0.3 * 0.7 / 2000) ** 0.5
    assert found.value == 0.3 and found.clips == 2000
    assert_close([end - 0.3 for end in found.interval], [-1.96 * deviation, 1.96 * deviation], atol=1e-3)


def test_the_videos_of_a_prompt_are_drawn_together():
    """Copies tell nothing more; alike, they widen the interval by the root of the design effect 1 + (m - 1) rho."""
    random = np.random.default_rng(0)
    ones = random.random(400).round().tolist()
    copies, prompts = np.repeat(ones, 5).tolist(), np.repeat(np.arange(400), 5).tolist()
    assert_close(half_width(copies, prompts), half_width(ones, list(range(400))))
    chance = np.repeat([0.1, 0.9], 200)
    values = (random.random((400, 5)) < chance[:, None]).astype(float)
    between = 5 * values.mean(axis=1).var(ddof=1)
    within = values.var(axis=1, ddof=1).mean()
    alike = (between - within) / (between + 4 * within)
    wide, narrow = (half_width(values.ravel().tolist(), each) for each in (prompts, list(range(2000))))
    assert_close(wide / narrow, float((1 + 4 * alike) ** 0.5), rtol=0.03, planted=1.0)


def test_small_numbers_by_hand():
    """Two prompts of one and three videos: of four draws one is of each alone, and the rest is the mean of all four."""
    found = estimate({"x": [1.0, 0.0, 0.0, 0.0], "one": [None, 1.0, None, 0.0], "none": [None] * 4}, "abbb")
    assert found["x"].interval == (0, 1) and found["x"].value == 0.25
    assert (found["one"].value, found["one"].clips, found["one"].interval) == (0.5, 2, None), "of one prompt alone"
    assert "none" not in found and estimate({}, []) == {}
    weights = estimate({"x": [float(k == 0) for k in range(3)]}, "abc", resamples=20_000)["x"]
    assert weights.interval == (0, 1), "(2/3)^3 = .3 of the draws leave one out, 1/27 = .037 hold no other"


def test_ten_thousand_resamples_are_drawn(monkeypatch: pytest.MonkeyPatch):
    """Of prompts, each drawing as many as there are, whatever the number of their videos."""
    drawn: list[np.ndarray] = []
    weights = intervals._weights

    def kept(*given: int) -> Iterator[np.ndarray]:
        for each in weights(*given):
            drawn.append(each)
            yield each

    monkeypatch.setattr(intervals, "_weights", kept)
    estimate({"x": [0.0, 1.0, 2.0, 3.0, 4.0]}, "aabbc")
    counts_RG = np.concatenate(drawn)
    assert counts_RG.shape == (10_000, 3) and (counts_RG.sum(axis=1) == 3).all()


def test_differences_are_paired():
    """Of equal sides exactly 0; of a constant step that step, however much the clips differ; gaps stay gaps."""
    random = np.random.default_rng(1)
    a: list[float | None] = [None, *random.normal(0, 10, 50).tolist()]
    same = estimate(differences({"x": a}, {"x": a}), range(51))["x"]
    assert (same.value, same.interval, same.clips) == (0, (0, 0), 50) and not same.is_off_zero
    step = differences({"x": a, "y": a}, {"x": [None if value is None else value + 0.5 for value in a]})
    found = estimate(step, range(51))
    assert list(found) == ["x"] and found["x"].is_off_zero
    assert_close([found["x"].value, *found["x"].interval], [-0.5] * 3)


def test_few_prompts_tell_no_difference():
    """Eight that agree do, seven do not, however many videos they have."""
    eight = estimate({"x": [1.0] * 16}, [k // 2 for k in range(16)])["x"]
    seven = estimate({"x": [1.0] * 70}, [k // 10 for k in range(70)])["x"]
    assert eight.interval == seven.interval == (1, 1)
    assert (eight.prompts, eight.is_off_zero, seven.prompts, seven.is_off_zero) == (8, True, 7, False)
    assert eight.content() == {"value": 1.0, "of": 16, "prompts": 8, "interval": [1.0, 1.0]}


@pytest.mark.parametrize("prompts", [2, 3, 6, 10, 20, 2048])
def test_the_percentiles_are_those_of_students_t(prompts: int):
    """As scipy has it; of many prompts they are the plain ones."""
    reach = (prompts / (prompts - 1)) ** 0.5 * stats.t.ppf(0.975, prompts - 1)
    assert_close(tail(prompts), float(stats.norm.cdf(-reach)), atol=1e-5, planted=0.0249 if prompts < 2048 else 0.0231)


@pytest.mark.parametrize("prompts", [6, 8, 10, 20])
@pytest.mark.parametrize("kind", ["normal", "heavy", "signs"])
def test_sides_that_do_not_differ_are_seldom_marked(prompts: int, kind: str):
    """In .06 of 2,000 cases, and the chance of that many; plain percentiles mark .07 to .15 of most of them."""
    random = np.random.default_rng([prompts, ord(kind[0])])
    many = (2000, prompts)
    values = {
        "normal": random.standard_normal(many),
        "heavy": random.laplace(size=many),
        "signs": random.choice([-1.0, 0.0, 0.0, 1.0], many),
    }[kind]
    found = estimate({str(k): row for k, row in enumerate(values.tolist())}, range(prompts), resamples=4000)
    assert sum(each.is_off_zero for each in found.values()) / 2000 <= (0.06 + 0.01 if prompts >= 8 else 0)


def test_intervals_of_accuracies_near_one_get_no_worse():
    """Of 8 and 20 prompts at .9 and .95 the truth lies in them as often as in plain ones; they stay within 0 to 1."""
    random = np.random.default_rng(5)
    for prompts, truth, plain in ((8, 0.9, 0.53), (8, 0.95, 0.33), (20, 0.9, 0.87), (20, 0.95, 0.63)):
        values = (random.random((2000, prompts)) < truth).astype(float)
        found = estimate({str(k): row for k, row in enumerate(values.tolist())}, range(prompts), resamples=4000)
        ends = [each.interval for each in found.values()]
        assert all(0 <= low <= high <= 1 for low, high in ends)
        assert sum(low <= truth <= high for low, high in ends) / 2000 >= plain - 0.03


def test_the_same_numbers_every_time():
    """The seed is fixed, another one moves the ends, and a column's interval does not depend on the others."""
    values = np.random.default_rng(2).random(40).tolist()
    one = estimate({"x": values}, range(40))
    assert one == estimate({"x": values}, range(40)) != estimate({"x": values}, range(40), seed=1)
    assert_close(list(estimate({"y": values[::-1], "x": values}, range(40))["x"].interval), list(one["x"].interval))
