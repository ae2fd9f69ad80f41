"""What one iteration of knowledge distillation is given: clips, noise and times of its samples, and both networks.

Letters: B batch, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu

from vdit_cli.backbones.base import LayerwiseTrainable
from vdit_cli.diffusion.milestones import signal_and_noise
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.fitting import autocast
from vdit_cli.distillation.held_clips import HeldClips, held_out_terms
from vdit_cli.distillation.kd import Weights, kd_losses, layer_errors
from vdit_cli.distillation.kd_networks import taught
from vdit_cli.distillation.samples import LossTerms, Samples
from vdit_cli.distillation.student_networks import Pair
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.recipe_training import DistillKdOptions


@dataclass
class KdLesson:
    """The loss of a masked student at its own `times`, as the training loop asks for it.

    The first `trained` clips are trained on. A student that is guided when it samples learns empty captions too.
    """

    options: DistillKdOptions
    pair: Pair
    clips: HeldClips
    schedule: NoiseSchedule
    is_masked: Sequence[bool]
    times: tuple[int, ...]
    is_guided: bool
    trained: int
    ranks: Ranks = ALONE

    @property
    def weights(self) -> Weights:
        """Of the terms of the loss."""
        options = self.options
        return Weights(options.attention_weight, options.hidden_weight, options.output_weight)

    def of(self, samples: Samples) -> LossTerms:
        """The loss terms of one part of a batch, at times of the student's drawn for each sample."""
        which_B = samples.integers("time", len(self.times))
        errors = self._errors(samples, samples.items(self.trained), which_B, self.weights)
        return kd_losses(errors, self.weights)

    def held_out(self, iteration: int) -> LossTerms:
        """This rank's share of the terms of the held clips; it does not hang on the iteration."""
        return self._held(self.weights)

    def held_layers(self) -> dict[int, float]:
        """The attention term of each masked layer on the held clips, by layer; all ranks must ask."""
        layers = [layer for layer, masked in enumerate(self.is_masked) if masked]
        terms = self._held(None)
        means = self.ranks.sum(torch.stack([terms[f"layer_{layer}"] for layer in layers]))
        return dict(zip(layers, means.tolist(), strict=True))

    @torch.no_grad()
    def _held(self, weights: Weights | None) -> LossTerms:
        """The loss of the held clips, or without `weights` each masked layer's; as many clips at each of the times."""
        masked = [layer for layer, is_masked in enumerate(self.is_masked) if is_masked]

        def terms_of(samples: Samples, items: range) -> LossTerms:
            places = torch.arange(samples.batch_size)[samples.places]
            which_B = (places * len(self.times) // samples.batch_size).to(samples.device)
            if weights:
                return kd_losses(self._errors(samples, items, which_B, weights), weights)
            errors_LB = self._errors(samples, items, which_B, Weights(1, 0, 0))["attention"]
            return {f"layer_{layer}": error_B.mean() for layer, error_B in zip(masked, errors_LB, strict=True)}

        return held_out_terms(self.options, self.clips, self.ranks, terms_of)

    def _errors(self, samples: Samples, items: Sequence[int], which_B: Tensor, weights: Weights) -> dict[str, Tensor]:
        options, device = self.options, self.clips.device
        x0, text = self.clips.batch(items)
        if self.is_guided:
            text = self.clips.some_emptied(text, samples, options.null_share)
        t_B = torch.tensor(self.times, device=device)[which_B]
        a, s = (each.to(x0) for each in signal_and_noise(self.schedule, t_B))
        x_t = a * x0 + s * samples.normal("noise", *x0.shape[1:])
        student, teacher = (
            cast(LayerwiseTrainable, each).layerwise(x_t, t_B, text) for each in (self.pair.student, self.pair.teacher)
        )
        with autocast(options.precision, device):
            return layer_errors(student, taught(self.pair, teacher), self.is_masked, weights, self._keep)

    def _keep(self) -> AbstractContextManager[object]:
        """Where blocks are computed again, the errors' differences are all that is left a layer: the CPU keeps them."""
        is_lean = self.options.gradient_checkpointing and torch.is_grad_enabled()
        return save_on_cpu(self.clips.device.type == "cuda") if is_lean else nullcontext()
