"""The bootstrap over prompts, where its shares are known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from tests.analysis.planted import StopsAfter
from tests.closeness import assert_within
from tests.search.made import MASKS
from vdit_cli.errors import INTERRUPTED, Interrupted
from vdit_cli.search.choose import Masks, Target, by_budget, by_threshold
from vdit_cli.search.mask_costs import kept_shares
from vdit_cli.search.steadiness import Steadiness, steadiness

R_10 = partial(by_threshold, masks=MASKS, r=0.1)


def losses(*layers: list[float]) -> np.ndarray:
    """(L, M, P): under 1:7 a layer's loss is what is given for each prompt, under all others but the full mask 9."""
    return np.array([[[0.0] * len(layer), [9.0] * len(layer), [9.0] * len(layer), layer] for layer in layers])


@pytest.mark.numerical
def test_the_share_is_that_of_resamples_that_choose_the_same():
    """Of 4 prompts one spoils the mean if drawn twice: 1:7 stays with probability (3/4)^4 + 4 (1/4) (3/4)^3."""
    found = steadiness(losses([0.01] * 4, [0, 0, 0, 0.39], [9.0] * 4), R_10, resamples=4000)
    assert found.shares[0] == found.shares[2] == 1
    expected = 0.75**4 + 4 * 0.25 * 0.75**3
    assert_within(abs(found.shares[1] - expected), 0.03, planted=0.75**4)
    assert found.coin_flips == (1,)
    assert (found.prompts, found.resamples, found.seed) == (4, 4000, 0)


def test_it_is_the_same_for_the_same_seed():
    """A thousand resamples of seed 0, unless other ones are asked for."""
    table = losses([0, 0, 0, 0.39], [0.3, 0, 0.05, 0.01])
    found = steadiness(table, R_10)
    assert found == steadiness(table, R_10, 1000, 0) and found.resamples == 1000
    assert found.shares != steadiness(table, R_10, seed=1).shares


def test_a_budget_has_coin_flips_too():
    """Two layers that cost the same compete for one sparse mask: which of them gets it hangs on the prompts."""
    table = losses([0.5, 0.1, 0.3, 0.2], [0.1, 0.5, 0.2, 0.32], [0.01, 0.01, 0.01, 0.01])
    target = Target("cost", 1 + 2 * 22 / 64)

    def choose(loss_LM: np.ndarray) -> Masks:
        """At this cost two layers of three get 1:7."""
        return by_budget(loss_LM, kept_shares(MASKS), target).masks

    found = steadiness(table, choose)
    assert found.shares[2] == 1 and found.coin_flips == (0, 1)


def test_the_bound_itself_is_steady():
    """Below .8 a layer is a coin-flip."""
    assert Steadiness((0.799, 0.8, 1.0), 4, 1000, 0).coin_flips == (0,)


def test_a_single_prompt_tells_nothing():
    """None, not a share of 1."""
    assert steadiness(losses([0.01]), R_10) is None


def test_a_person_who_has_waited_enough():
    """Ctrl-C stops between two resamples; each is counted."""
    chosen: list[int] = []

    def choose(loss_LM: np.ndarray) -> Masks:
        chosen.append(1)
        return R_10(loss_LM)

    with pytest.raises(Interrupted, match="how steady the choice is") as stopped:
        steadiness(losses([0.01, 0.2]), choose, progress=StopsAfter(7))
    assert stopped.value.exit_code == INTERRUPTED and len(chosen) == 1 + 7
