"""What the teacher answered to the last batches, kept so that each batch can be learned from several times.

Letters: B batch, C channels, F latent frames, h, w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch

from vdit_cli.distillation.held_clips import HELD_BYTES
from vdit_cli.distillation.mlcd import Answer

KEPT = 64
"""Batches that are learned from in turn: as far apart that an optimiser has forgotten one when it meets it again."""
CPU = torch.device("cpu")


def drawn_in(iteration: int, uses: int) -> int:
    """The number of the batch that an iteration learns from: KEPT of them in order, so often, then the next KEPT."""
    turn, place = divmod(iteration, KEPT * uses)
    return turn * KEPT + place % KEPT


@dataclass
class Answers:
    """The answers to the batches of one turn: on their device as far as they are small, the rest on the CPU."""

    turn: int = -1
    kept: dict[Hashable, Answer] = field(default_factory=dict)
    device: torch.device = CPU
    held: int = 0

    def of(self, batch: int, which: Hashable, ask: Callable[[], Answer]) -> Answer:
        """The answer to a part of a batch, `which`; the teacher is asked where it isn't there, as after a resume."""
        if batch // KEPT != self.turn:
            self.turn, self.kept, self.held = batch // KEPT, {}, 0
        key = (batch, which)
        if key in self.kept:
            return Answer(*(each.to(self.device) for each in self.kept[key]))
        answer = ask()
        self.device, size = answer.x0.device, sum(each.nbytes for each in answer)
        is_small = self.held + size <= HELD_BYTES
        self.held += size if is_small else 0
        self.kept[key] = answer if is_small else Answer(*(each.to(CPU) for each in answer))
        return answer
