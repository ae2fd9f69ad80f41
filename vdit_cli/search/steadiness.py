"""How steady a choice is: whether other prompts and seeds would have led to the same masks. No torch.

Letters: L layers, M masks, P prompts with a seed each, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vdit_cli.errors import Interrupted
from vdit_cli.search.choose import Masks
from vdit_cli.timing import Progress, Silent

RESAMPLES = 1000
STEADY = 0.8
"""A layer whose mask is chosen in a smaller share of resamples is a coin-flip. [ours]"""


@dataclass(frozen=True)
class Steadiness:
    """For each layer the share of `resamples` drawn from `prompts` in which its mask is chosen again."""

    shares: tuple[float, ...]
    prompts: int
    resamples: int
    seed: int

    @property
    def coin_flips(self) -> tuple[int, ...]:
        """The layers whose mask is chosen again in less than STEADY of the resamples."""
        return tuple(layer for layer, share in enumerate(self.shares) if share < STEADY)


def steadiness(
    loss_LMP: np.ndarray,
    choose: Callable[[np.ndarray], Masks],
    resamples: int = RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Steadiness | None:
    """A bootstrap: P prompts are drawn with replacement from the P that were measured, and `choose` chooses anew.

    `loss_LMP` is `SensitivityTable.of_prompts`, `choose` takes its mean (L, M) to one mask a layer, by a threshold or
    a budget, and is called `resamples` + 1 times. None for a single prompt, which tells nothing of others. Raises
    Interrupted when the person asked to stop.
    """
    progress = progress or Silent()
    prompts = loss_LMP.shape[2]
    if prompts < 2:
        return None
    chosen = choose(loss_LMP.mean(axis=2))
    drawn_RP = np.random.default_rng(seed).integers(0, prompts, (resamples, prompts))
    again = np.zeros(len(chosen))
    progress.stage("choosing from resampled prompts", resamples)
    for drawn_P in drawn_RP:
        if progress.should_stop():
            raise Interrupted(
                "stopped: how steady the choice is was not told yet", next_steps=["the same command again"]
            )
        other = choose(loss_LMP[:, :, drawn_P].mean(axis=2))
        again += [mask == own for mask, own in zip(other, chosen, strict=True)]
        progress.advance()
    progress.end_stage()
    return Steadiness(tuple((again / resamples).tolist()), prompts, resamples, seed)
