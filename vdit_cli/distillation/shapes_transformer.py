"""Training the video transformer of the embedded model on encoded clips and the states of their captions.

Letters: B batch, N clips of the pool, C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.data.shapes_world import caption, draw_scenes, leave_out, render
from vdit_cli.diffusion.prediction import target
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.trainer import LossTerms, Trained, put_parameters, train
from vdit_cli.errors import Interrupted
from vdit_cli.recipe_training import ShapesTransformerOptions
from vdit_cli.timing import Progress


def transformer_config(options: ShapesTransformerOptions, text_width: int) -> dict[str, Any]:
    """The OpenSoraT2V configuration: the released model's, with other sizes."""
    width = options.heads * options.head_dim
    return {
        "_class_name": "OpenSoraT2V",
        "num_layers": options.layers,
        "num_attention_heads": options.heads,
        "attention_head_dim": options.head_dim,
        "in_channels": 4,
        "out_channels": 4,
        "patch_size": 2,
        "patch_size_t": 1,
        "caption_channels": text_width,
        "cross_attention_dim": width,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "use_rope": True,
        "downsampler": None,
        "sample_size": [16, 16],
        "sample_size_t": 8,
        "interpolation_scale_t": 1.0,
        "interpolation_scale_h": 1.0,
        "interpolation_scale_w": 1.0,
    }


class ClipPool:
    """Encoded clips with the states of their captions on the device, a few of them replaced as training goes on.

    Which clips stand where is a function of the iteration alone, so a resumed run finds the same pool.
    """

    def __init__(
        self,
        vae: CausalVAEModel,
        text: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        options: ShapesTransformerOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        self.vae, self.text, self.tokenizer = vae, text, tokenizer
        self.options, self.seed, self.device = options, seed, device
        none_LC, none_L = (each[0] for each in self._read([""]))
        self.no_states_LC, self.no_mask_L = none_LC, none_L
        self.latents_NCFhw = torch.empty(options.clips, 4, 8, 16, 16, device=device)
        self.states_NLC = torch.empty(options.clips, *none_LC.shape, device=device)
        self.mask_NL = torch.empty(options.clips, *none_L.shape, dtype=none_L.dtype, device=device)
        self.written = 0

    @torch.no_grad()
    def write(self, first: int, count: int) -> None:
        """Draw, render and encode clips `first` .. `first + count` of the endless sequence into their slots."""
        scenes = draw_scenes(self.seed + 1, count, "train", self.options.two_objects, start=first)
        slots = torch.arange(first, first + count, device=self.device) % self.options.clips
        video = render(scenes, device=self.device) * 2.0 - 1.0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            self.latents_NCFhw[slots] = self.vae.encode(video).latent_dist.mean.float()
        said = leave_out(scenes, self.seed + 1, self.options.left_out, start=first)
        self.states_NLC[slots], self.mask_NL[slots] = self._read(list(map(caption, said)))
        self.written = first + count

    @torch.no_grad()
    def _read(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """The float32 states (B, L, C) of prompts, padded to the tokenizer's length, and their mask (B, L)."""
        length = self.tokenizer.model_max_length
        found = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(self.device)
        return self.text(**found).last_hidden_state.float(), found["attention_mask"]

    def fill(self, iteration: int, progress: Progress) -> None:
        """Encode what the pool holds at `iteration`: the newest `clips` clips drawn until then."""
        end = self.options.clips + self._refreshes(iteration) * self.options.fresh_clips
        begin = end - self.options.clips
        chunk = self.options.fresh_clips  # the same batches as `refresh`, so that a resumed pool is bit-equal
        progress.stage("encoding clips", self.options.clips // chunk)
        for first in range(begin, end, chunk):
            self.write(first, chunk)
            progress.advance()
            if progress.should_stop():
                raise Interrupted(
                    "stopped while encoding clips", next_steps=["the same command again encodes them anew"]
                )

    def _refreshes(self, iteration: int) -> int:
        return iteration // self.options.fresh_every

    def refresh(self, iteration: int) -> None:
        """Replace the oldest clips when `iteration` is a turn for it."""
        if iteration and iteration % self.options.fresh_every == 0:
            self.write(self.written, self.options.fresh_clips)

    def batch(self, on_cpu: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, C, F, h, w), states (B, L, C) and their mask, a share of the captions emptied for guidance."""
        size = self.options.batch_size
        picks = torch.randint(self.options.clips, (size,), generator=on_cpu).to(self.device)
        dropped_B = (torch.rand(size, generator=on_cpu) < self.options.prompt_dropout).to(self.device)
        states = torch.where(dropped_B[:, None, None], self.no_states_LC, self.states_NLC[picks])
        mask = torch.where(dropped_B[:, None], self.no_mask_L, self.mask_NL[picks])
        return self.latents_NCFhw[picks], states, mask


def is_moved_by_muon(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves a parameter of the transformer, AdamW moving the rest: the matrices of blocks and of the time.

    What turns the time into scales, shifts and gates is only a matrix times the embedded time. A step of AdamW moves
    all of its numbers alike where their gradients agree, as they do in the few clips of nearly no noise, and so its
    outcome by the rate times the sum of an embedding: with AdamW these scales jump in the midst of training to a
    hundred times their size, at a tenth of the rate too, and the times below 80 are lost (docs/results.md). Muon bounds
    what a step can do to any outcome.
    """
    is_matrix = parameter.ndim == 2 and "table" not in name
    return is_matrix and ("transformer_blocks." in name or is_time_modulation(name))


def is_time_modulation(name: str) -> bool:
    """Whether a parameter turns the time into scales, shifts and gates."""
    return name.startswith("adaln_single.")


def noise_weights(sigma_B: Tensor, low_noise: float) -> Tensor:
    """What an error of v weighs: (sigma / low_noise)^2 below that noise, 1 above and for a `low_noise` of 0."""
    return (sigma_B / low_noise).square().clamp(max=1.0) if low_noise else torch.ones_like(sigma_B)


TIME_BANDS = 10


def losses_by_time(errors_B: Tensor, t_B: Tensor, timesteps: int) -> LossTerms:
    """The loss in each tenth of the times, `loss_0_99` and so on, from a batch's losses at uniform times.

    What falls into a band counts against what is expected to, so that the mean over iterations is right even where
    single batches have nothing there.
    """
    edges = [band * timesteps // TIME_BANDS for band in range(TIME_BANDS + 1)]
    return {
        f"loss_{low}_{high - 1}": (errors_B * ((t_B >= low) & (t_B < high))).mean() * (timesteps / (high - low))
        for low, high in zip(edges, edges[1:], strict=False)
    }


def train_transformer(
    vae: CausalVAEModel,
    text: T5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    schedule: NoiseSchedule,
    options: ShapesTransformerOptions,
    seed: int,
    folder: Path,
    device: torch.device,
    compiled: bool,
    progress: Progress,
) -> tuple[OpenSoraT2V, Trained]:
    """Train the transformer from scratch by v-prediction, VAE and text encoder frozen; it has the averaged weights.

    Loss: mean squared error of v = alpha eps - sigma x0 at uniform timesteps (Salimans & Ho, arXiv 2202.00512).
    """
    torch.manual_seed(seed)
    model = OpenSoraT2V(transformer_config(options, text.config.d_model))
    model.initialise(torch.Generator().manual_seed(seed))
    model.to(device)
    if compiled:
        for block in model.transformer_blocks:
            block.compile()
    optimisers = build_optimisers(
        model,
        is_moved_by_muon,
        matrix_rate=options.learning_rate,
        rate=options.learning_rate,
        betas=(0.9, 0.99),
        matrix_decay=0.02,
        is_slow=is_time_modulation,
        slow_share=options.time_rate,
    )
    schedule = schedule.to(device)
    pool = ClipPool(vae, text, tokenizer, options, seed, device)

    def loss(iteration: int, on_cpu: torch.Generator, on_device: torch.Generator) -> LossTerms:
        if pool.written == 0:
            pool.fill(iteration, progress)
            progress.stage("transformer", options.iterations - iteration)
        else:
            pool.refresh(iteration)
        x0, states, mask = pool.batch(on_cpu)
        eps = torch.randn(x0.shape, generator=on_device, device=device)
        t = torch.randint(len(schedule.alphas), (len(x0),), generator=on_device, device=device)
        a, s = schedule.at(t, x0)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            predicted = model(a * x0 + s * eps, t, states, mask)
        errors_B = (predicted.float() - target("v", x0, eps, a, s)).square().flatten(1).mean(1)
        weights_B = noise_weights(s.flatten(), options.low_noise)
        return {"loss": (weights_B * errors_B).mean()} | losses_by_time(errors_B.detach(), t, schedule.timesteps)

    trained = train(model, optimisers, loss, options, "transformer", seed, folder, device, progress)
    put_parameters(model, trained.average)
    return model.eval().requires_grad_(False), trained


JUDGED_TIMES = (20, 49, 99, 249, 499, 749)
LOST = 5.0
"""A lower time is lost where v is told so many times worse than at t = 99 [ours: a sound model has 2.7 at t = 20]."""


@torch.no_grad()
def errors_by_time(
    model: OpenSoraT2V, pool: ClipPool, schedule: NoiseSchedule, times: Sequence[int] = JUDGED_TIMES
) -> dict[int, float]:
    """Mean squared error of v at each time, in float32, over the clips of a `pool` that is filled."""
    device, x0 = pool.device, pool.latents_NCFhw
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)).to(device)
    found = {}
    for time in times:
        errors = []
        for part in torch.arange(len(x0), device=device).split(16):
            t = torch.full((len(part),), time, device=device)
            a, s = schedule.at(t, x0)
            told = model(a * x0[part] + s * eps[part], t, pool.states_NLC[part], pool.mask_NL[part])
            errors.append((told - target("v", x0[part], eps[part], a, s)).square().flatten(1).mean(1))
        found[time] = torch.cat(errors).double().mean().item()
    return found


def lost_times(errors: Mapping[int, float]) -> list[int]:
    """The times below 99 that the model does not know: a jump of the time modulation loses them (docs/results.md)."""
    return [time for time, error in errors.items() if time < 99 and error > LOST * errors[99]]
