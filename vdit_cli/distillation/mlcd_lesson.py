"""What one iteration of a distillation is given: clips, noise and times of its samples, and the networks on them.

Letters: B batch, C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vdit_cli.backbones.base import TextStates
from vdit_cli.data.shards import Clips
from vdit_cli.diffusion.milestones import Milestones, points_at
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.mlcd import Networks, guided, mlcd_losses
from vdit_cli.distillation.mlcd_networks import Learned, Pair, predicting, predicting_with
from vdit_cli.distillation.mlcd_segments import (
    drawn_segments,
    held_segments,
    means_by_segment,
    segments_of,
    shares_among,
    shares_of,
    times_in,
)
from vdit_cli.distillation.samples import LossTerms, Samples
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.recipe_training import DistillMlcdOptions

HELD_BYTES = 2 << 30
"""Data up to this size is kept on the device; larger data is read from its files batch by batch."""


class HeldClips:
    """Latents and texts of clips on the device, all of them kept there where they are small."""

    def __init__(self, clips: Clips, device: torch.device) -> None:
        self.clips, self.device = clips, device
        numbers = torch.Size(clips.latent_shape).numel() + clips.text_length * clips.text_width
        everything = range(len(clips))
        is_small = len(clips) * numbers * torch.float32.itemsize <= HELD_BYTES
        self.kept = self._read(everything) if is_small else None
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


@dataclass
class Lesson:
    """The loss of a student of `steps` steps, as the training loop asks for it.

    The first `trained` clips are trained on, the last `held` ones never.
    """

    options: DistillMlcdOptions
    pair: Pair
    learned: Learned
    clips: HeldClips
    schedule: NoiseSchedule
    steps: int
    teacher_guidance: float
    trained: int
    held: int = 0
    ranks: Ranks = ALONE

    def of(self, samples: Samples) -> LossTerms:
        """The loss terms of one part of a batch."""
        shares = shares_of(self.options, self.steps)
        segment_B = drawn_segments(samples, shares)
        losses = self._losses(samples, samples.items(self.trained), segment_B, self.path_at(samples.iteration))
        return means_by_segment(losses, segment_B, shares)

    @torch.no_grad()
    def held_out(self, iteration: int) -> LossTerms:
        """This rank's share of the terms of the held clips with the teacher points of `iteration`.

        A clip's noise and segment never change, and segments have as many clips each whatever is drawn in training:
        trainings that draw them otherwise, or train on other clips, are compared by the same. Parts are as large as in
        training, for which blocks are compiled.
        """
        clips, ranks, device = len(self.clips.clips), self.ranks, self.clips.device
        part = -(-self.options.batch_size // (ranks.count * self.options.accumulation))
        starts = range(0, self.held, part)
        segments = held_segments(self.held, self.steps)
        shares, totals = shares_among(segments, self.steps), dict[str, Tensor]()
        # Every rank calls its networks equally often: in shards a call needs all ranks.
        for place in range(ranks.rank, -(-len(starts) // ranks.count) * ranks.count, ranks.count):
            first = starts[min(place, len(starts) - 1)]
            count = min(part, self.held - first)
            # Iteration -1: numbers that no sample of the training has.
            samples = Samples(self.options.seed, -1, first, count, self.held, device)
            items = range(clips - self.held + first, clips - self.held + first + count)
            share = count / self.held if place < len(starts) else 0.0
            losses = self._losses(samples, items, segments[samples.places], self.path_at(iteration))
            for name, term in means_by_segment(losses, segments[samples.places], shares).items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + term * share
        return totals

    def _losses(self, samples: Samples, items: Sequence[int], segment_B: Tensor, path: Milestones) -> dict[str, Tensor]:
        options = self.options
        x0, text = self.clips.batch(items)
        if options.guidance == "kept":
            text = self._some_emptied(text, samples)
        eps = samples.normal("noise", *x0.shape[1:])
        return mlcd_losses(
            self._networks(text),
            self.pair.teacher.prediction,
            self.schedule,
            x0,
            eps,
            times_in(path, segment_B, samples),
            cap=options.weight_cap,
            c=options.huber_c,
        )

    def path_at(self, iteration: int) -> Milestones:
        """The student's segments with the teacher points of this iteration."""
        options = self.options
        points = points_at(iteration, options.iterations, options.teacher_points, options.teacher_shares)
        return segments_of(options, self.steps, self.schedule.timesteps, points)

    def _networks(self, text: TextStates) -> Networks:
        options, pair = self.options, self.pair
        student = predicting(pair.student, text, options.precision)
        target = student
        if options.target == "average":
            target = predicting_with(pair.student, self.learned.part("target"), text, options.precision)
        if options.guidance == "kept" or self.teacher_guidance == 1.0:
            return Networks(student, target, predicting(pair.teacher, text, options.precision))
        both = TextStates(
            torch.cat([text.states_BLC, self.clips.null.states_BLC.expand_as(text.states_BLC)]),
            torch.cat([text.mask_BL, self.clips.null.mask_BL.expand_as(text.mask_BL)]),
        )
        teacher = guided(predicting(pair.teacher, both, options.precision), self.teacher_guidance)
        return Networks(student, target, teacher)

    def _some_emptied(self, text: TextStates, samples: Samples) -> TextStates:
        """A share of the captions replaced by the null text, so that the student can be guided later."""
        is_null = samples.uniform("null") < self.options.null_share
        null = self.clips.null
        return TextStates(
            torch.where(is_null[:, None, None], null.states_BLC, text.states_BLC),
            torch.where(is_null[:, None], null.mask_BL, text.mask_BL),
        )
