"""The clips that a training draws from, on the device, and those that it never learns from.

Letters: B batch, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vdit_cli.backbones.base import TextStates
from vdit_cli.data.shards import Clips
from vdit_cli.distillation.samples import LossTerms, Samples
from vdit_cli.parallel.groups import Ranks
from vdit_cli.recipe_training import StudentOptions

HELD_BYTES = 2 << 30
"""Data up to this size is kept on the device; larger data is read from its files batch by batch."""


def held_bytes(clips: Clips) -> int:
    """Bytes of the clips that are kept on the device, 0 of larger data."""
    numbers = torch.Size(clips.latent_shape).numel() + clips.text_length * clips.text_width
    everything = len(clips) * numbers * torch.float32.itemsize
    return everything if everything <= HELD_BYTES else 0


class HeldClips:
    """Latents and texts of clips on the device, all of them kept there where they are small."""

    def __init__(self, clips: Clips, device: torch.device) -> None:
        self.clips, self.device = clips, device
        self.kept = self._read(range(len(clips))) if held_bytes(clips) else None
        states, mask = clips.null_text()
        self.null = TextStates(states.to(device), mask.to(device))

    def batch(self, items: Sequence[int]) -> tuple[Tensor, TextStates]:
        """Latents (B, C, F, h, w) and texts of the clips with these numbers."""
        if self.kept is None:
            return self._read(items)
        latents, text = self.kept
        picks = torch.tensor(items, device=self.device)
        return latents[picks], TextStates(text.states_BLC[picks], text.mask_BL[picks])

    def _read(self, items: Sequence[int]) -> tuple[Tensor, TextStates]:
        states, mask = self.clips.text(items)
        return self.clips.latents(items).to(self.device), TextStates(states.to(self.device), mask.to(self.device))

    def some_emptied(self, text: TextStates, samples: Samples, share: float) -> TextStates:
        """A share of the captions replaced by the null text, so that the student can be guided later."""
        is_null = samples.uniform("null") < share
        return TextStates(
            torch.where(is_null[:, None, None], self.null.states_BLC, text.states_BLC),
            torch.where(is_null[:, None], self.null.mask_BL, text.mask_BL),
        )


def held_out_terms(
    options: StudentOptions, clips: HeldClips, ranks: Ranks, terms_of: Callable[[Samples, range], LossTerms]
) -> LossTerms:
    """This rank's share of `terms_of` (samples, clips' numbers) over the last `options.held_out` clips.

    Parts are as large as in training, for which blocks are compiled. A clip's noise never changes: iteration -1 has
    numbers that no sample of the training has.
    """
    held, device = options.held_out, clips.device
    part = -(-options.batch_size // (ranks.count * options.accumulation))
    starts = range(0, held, part)
    totals = dict[str, Tensor]()
    # Every rank calls its networks equally often: in shards a call needs all ranks.
    for place in range(ranks.rank, -(-len(starts) // ranks.count) * ranks.count, ranks.count):
        first = starts[min(place, len(starts) - 1)]
        count = min(part, held - first)
        samples = Samples(options.seed, -1, first, count, held, device)
        start = len(clips.clips) - held + first
        share = count / held if place < len(starts) else 0.0
        for name, term in terms_of(samples, range(start, start + count)).items():
            totals[name] = totals.get(name, torch.zeros((), device=device)) + term * share
    return totals
