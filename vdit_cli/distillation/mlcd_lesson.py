"""What one iteration of a distillation is given: clips, noise and times of its samples, and the networks on them.

Letters: B batch, C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from vdit_cli.backbones.base import TextStates
from vdit_cli.diffusion.milestones import CLEAN, Milestones, points_at
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.held_clips import HeldClips, held_out_terms
from vdit_cli.distillation.mlcd import Kept, Networks, asked, guided, mlcd_losses
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
from vdit_cli.distillation.segment_errors import SegmentError, segment_errors, segment_squares
from vdit_cli.distillation.student_networks import Learned, Pair, predicting, predicting_with
from vdit_cli.distillation.teacher_answers import Answers, drawn_in
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.recipe_training import DistillMlcdOptions


@dataclass
class Lesson:
    """The loss of a student of `steps` steps, as the training loop asks for it.

    The first `trained` clips are trained on.
    """

    options: DistillMlcdOptions
    pair: Pair
    learned: Learned
    clips: HeldClips
    schedule: NoiseSchedule
    steps: int
    teacher_guidance: float
    trained: int
    ranks: Ranks = ALONE
    answers: Answers = field(default_factory=Answers)

    def of(self, samples: Samples) -> LossTerms:
        """The loss terms of one part of a batch, which may have been learned from before."""
        path = self.path_at(samples.iteration)
        shares = shares_of(self.options, self.steps)
        if self.options.teacher_reuse > 1:
            samples = replace(samples, iteration=drawn_in(samples.iteration, self.options.teacher_reuse))
        segment_B = drawn_segments(samples, shares)
        losses = self._losses(samples, samples.items(self.trained), segment_B, path, self._kept(samples, path))
        return means_by_segment(losses, segment_B, shares)

    @torch.no_grad()
    def held_out(self, iteration: int) -> LossTerms:
        """This rank's share of the terms of the held clips with the teacher points of `iteration`.

        A clip's noise and segment never change, and segments have as many clips each whatever is drawn in training:
        trainings that draw them otherwise, or train on other clips, are compared by the same.
        """
        held = self.options.held_out
        segments = held_segments(held, self.steps)
        shares = shares_among(segments, self.steps)

        def terms_of(samples: Samples, items: range) -> LossTerms:
            here_B = segments[samples.places]
            return means_by_segment(self._losses(samples, items, here_B, self.path_at(iteration)), here_B, shares)

        return held_out_terms(self.options, self.clips, self.ranks, terms_of)

    @torch.no_grad()
    def segment_errors(self) -> list[SegmentError]:
        """How near the student is to its teacher in each segment, on the held clips; all ranks must ask."""
        path = segments_of(self.options, self.steps, self.schedule.timesteps)
        times, truth = (*path.sampled, CLEAN), self.options.truth_steps

        def squares_of(samples: Samples, items: range) -> LossTerms:
            x0, text = self.clips.batch(items)
            noise, kind = samples.normal("noise", *x0.shape[1:]), self.pair.teacher.prediction
            return segment_squares(self._networks(text, path.points), kind, self.schedule, x0, noise, times, truth)

        squares = held_out_terms(self.options, self.clips, self.ranks, squares_of)
        means = self.ranks.sum(torch.stack(list(squares.values())))
        return segment_errors(dict(zip(squares, means.tolist(), strict=True)), times)

    def _kept(self, samples: Samples, path: Milestones) -> Kept:
        """Where the teacher's answers are kept for the next time, the way to one that is there."""
        if self.options.teacher_reuse == 1:
            return asked
        return partial(self.answers.of, samples.iteration, (samples.first, samples.count, path.points))

    def _losses(
        self, samples: Samples, items: Sequence[int], segment_B: Tensor, path: Milestones, kept: Kept = asked
    ) -> dict[str, Tensor]:
        options = self.options
        x0, text = self.clips.batch(items)
        if options.guidance == "kept":
            text = self.clips.some_emptied(text, samples, options.null_share)
        eps = samples.normal("noise", *x0.shape[1:])
        return mlcd_losses(
            self._networks(text, path.points),
            self.pair.teacher.prediction,
            self.schedule,
            x0,
            eps,
            times_in(path, segment_B, samples),
            cap=options.weight_cap,
            c=options.huber_c,
            substeps=options.teacher_substeps,
            kept=kept,
        )

    def path_at(self, iteration: int) -> Milestones:
        """The student's segments with the teacher points of this iteration."""
        options = self.options
        points = points_at(iteration, options.iterations, options.teacher_points, options.teacher_shares)
        return segments_of(options, self.steps, self.schedule.timesteps, points)

    def _networks(self, text: TextStates, points: int) -> Networks:
        options, pair = self.options, self.pair
        student = predicting(pair.student, text, options.precision)
        target = None if points == 1 else student  # with one point all targets are the teacher's own
        if points > 1 and options.target == "average":
            target = predicting_with(pair.student, self.learned.part("target"), text, options.precision)
        if options.guidance == "kept" or self.teacher_guidance == 1.0:
            return Networks(student, target, predicting(pair.teacher, text, options.precision))
        both = TextStates(
            torch.cat([text.states_BLC, self.clips.null.states_BLC.expand_as(text.states_BLC)]),
            torch.cat([text.mask_BL, self.clips.null.mask_BL.expand_as(text.mask_BL)]),
        )
        teacher = guided(predicting(pair.teacher, both, options.precision), self.teacher_guidance)
        return Networks(student, target, teacher)
