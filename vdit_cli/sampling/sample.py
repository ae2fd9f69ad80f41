"""The one denoising loop: generation, previews, search and evaluation all sample here.

Letters: B batch (videos), C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdit_cli.backbones.base import Backbone, TextStates, prepared_text
from vdit_cli.diffusion.guidance import combine
from vdit_cli.diffusion.solvers import SCHEDULERS, make_scheduler, set_steps
from vdit_cli.errors import FAILED, EvditError, Interrupted
from vdit_cli.sampling.noise import initial_noise
from vdit_cli.timing import Progress


@dataclass(frozen=True)
class SampleSpec:
    """Everything that decides a video but its prompt and its seed; guidance 1 means no null branch.

    `timesteps` is a spacing or numbers; without it the model's config lays the steps out.
    """

    video_frames: int
    height: int
    width: int
    steps: int
    guidance: float
    scheduler: str
    timesteps: str | None = None

    @property
    def guided(self) -> bool:
        """Whether each step also runs the null branch, which doubles its batch."""
        return self.guidance != 1.0


@torch.no_grad()
def sample(
    backbone: Backbone,
    spec: SampleSpec,
    text: TextStates,
    null_text: TextStates | None,
    generators: Sequence[torch.Generator],
    progress: Progress,
    *,
    prepare: bool = True,
    denoise: Callable[[Tensor, Tensor, Any], Tensor] | None = None,
) -> Tensor:
    """Latents (B, C, F, h, w), float32 on the backbone's device, denoised from the noise of `generators`, one a video.

    `text` holds B prompts, `null_text` one or B (None is enough where `spec.guidance` is 1). Each step ends in one
    `progress.advance` with its seconds. Without `prepare` each step projects the text anew. `denoise` stands in for the
    backbone's own. The steps are in float32 whatever the network computes in. Raises Interrupted after the step in
    which the person asked to stop, and EvditError where the latents end up not finite.
    """
    shape_CFhw = backbone.latent_shape(spec.video_frames, spec.height, spec.width)
    scheduler = make_scheduler(spec.scheduler, backbone.scheduler_config, spec.timesteps)
    timesteps = set_steps(scheduler, spec.steps)
    draws = {"generator": list(generators)} if SCHEDULERS[spec.scheduler].draws_noise else {}
    branches = _branches(spec, text, null_text, len(generators)).to(backbone.device, backbone.dtype)
    network_text = prepared_text(backbone, branches) if prepare else branches
    copies = 2 if spec.guided else 1
    denoise = denoise or backbone.denoise

    x = initial_noise(shape_CFhw, generators, backbone.device) * scheduler.init_noise_sigma
    # Copied once: reading a timestep from the CPU inside the loop would hold the device up at each step.
    t_of_step = timesteps.to(backbone.device)
    pace = _Pace(backbone.device)
    for step, t in enumerate(timesteps):
        x_in = scheduler.scale_model_input(x, t).to(backbone.dtype).repeat(copies, 1, 1, 1, 1)
        output = denoise(x_in, t_of_step[step].expand(len(x_in)), network_text).float()
        if spec.guided:
            cond, null = output.chunk(2)
            output = combine(cond, null, spec.guidance)
        x = scheduler.step(output, t, x, **draws).prev_sample
        seconds = pace.seconds()
        progress.advance(f"{seconds:.2f} s a step" if seconds >= 1 else f"{seconds:.2g} s a step")
        if progress.should_stop() and step + 1 < spec.steps:
            raise Interrupted(f"stopped after step {step + 1} of {spec.steps}")
    if not bool(torch.isfinite(x).all()):
        raise EvditError(
            f"the latents are not finite after {spec.steps} steps in {str(backbone.dtype).removeprefix('torch.')}: "
            "the video would be noise",
            next_steps=["--dtype float32", "--scheduler ddim"],
            exit_code=FAILED,
        )
    return x


def _branches(spec: SampleSpec, text: TextStates, null_text: TextStates | None, batch: int) -> TextStates:
    """Text of the whole network batch: the B prompts, then with guidance their B null texts, padded to one length."""
    if len(text.states_BLC) != batch:
        raise ValueError(f"{len(text.states_BLC)} prompts for {batch} generators")
    if not spec.guided:
        return text
    if null_text is None:
        raise ValueError(f"guidance {spec.guidance} needs a null text")
    length = max(text.states_BLC.shape[1], null_text.states_BLC.shape[1])
    null_states = null_text.states_BLC.expand(batch, -1, -1)
    null_mask = null_text.mask_BL.expand(batch, -1)
    return TextStates(
        torch.cat([padded(text.states_BLC, length), padded(null_states, length)]),
        torch.cat([padded(text.mask_BL, length), padded(null_mask, length)]),
    )


def padded(x: Tensor, length: int) -> Tensor:
    """x (B, L, ...) with zeros behind its second axis up to `length`; zeros in a text mask mean padding."""
    missing = length - x.shape[1]
    return x if missing == 0 else torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)


class _Pace:
    """Seconds of each step; on a GPU it waits for the step before the last one, so the queue stays two steps long."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._pending: torch.cuda.Event | None = None
        self._last = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the call before."""
        if self._on_gpu:
            before, self._pending = self._pending, torch.cuda.Event()
            self._pending.record()
            if before is not None:
                before.synchronize()
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        return elapsed
