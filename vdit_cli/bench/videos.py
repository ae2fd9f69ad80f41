"""Seconds a video from seconds a step, one video run whole to check them, and what comes before and after denoising."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.bench.clock import clock_for, time_in_turns
from vdit_cli.bench.model_rows import COMPILED, EAGER, PLAIN, StepRow, row_where
from vdit_cli.bench.model_sizes import DENSE, SIZES, ModelSize, Plans
from vdit_cli.bench.paper_videos import BASE_STEPS, PAPER_FRAMES, PAPER_SPEEDUPS, STUDENT_STEPS
from vdit_cli.bench.steps import LATENT_CHANNELS, WEIGHT_STD, BareBackbone
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.sample import SampleSpec, sample
from vdit_cli.timing import Silent

FEW_STEPS = 8
MODES = ((BASE_STEPS, True), (STUDENT_STEPS, True), (FEW_STEPS, True), (STUDENT_STEPS, False), (FEW_STEPS, False))
"""(steps, guidance kept) of the videos that are told."""
CHOSEN = "r=.1"
"""The plan under which a video is run whole, where it was measured; else the sparsest."""
AGREEMENT = 0.03

VAE: dict[str, Any] = {
    "encoder_conv_in": "Conv2d",
    "encoder_attention": "AttnBlock3DFix",
    "decoder_attention": "AttnBlock3DFix",
    "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"],
    "encoder_spatial_downsample": ["Downsample", "Spatial2xTime2x3DDownsample", "Spatial2xTime2x3DDownsample", ""],
    "encoder_temporal_downsample": [""] * 4,
    "decoder_spatial_upsample": ["", "SpatialUpsample2x", "Spatial2xTime2x3DUpsample", "Spatial2xTime2x3DUpsample"],
    "decoder_temporal_upsample": [""] * 4,
}
"""The merged sampling of v1.2 at upstream's widths, 128 x (1, 2, 4, 4) [ours: the released config.json decides]."""
SMALL_VAE: dict[str, Any] = {**VAE, "hidden_size": 32, "hidden_size_mult": [1, 1, 1, 1], "norm_num_groups": 8}
MT5_XXL: dict[str, Any] = {"d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
SMALL_T5: dict[str, Any] = {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
VOCABULARY = 1000
"""Of the text encoder: how many there are does not change the time of reading a row for each token."""


def video_rows(size: ModelSize, plans: Plans, rows: Sequence[StepRow]) -> list[dict[str, Any]]:
    """Seconds of denoising a video by plan and mode, and its speed-up over 100 plain steps with guidance.

    Each step is the fastest of eager and compiled. The paper's speed-up stands beside where it has the row.
    """
    plain = row_where(rows, frames=size.grid.frames, plan=DENSE, way=PLAIN, guided=True)
    base = BASE_STEPS * plain.ms / 1000 if plain and plain.ms else None
    found: list[dict[str, Any]] = []
    if base is not None:
        found.append({"plan": "plain", "steps": BASE_STEPS, "guidance": "kept", "seconds": base, "speedup": 1.0})
    for plan in plans:
        for steps, guided in MODES:
            row = best_step(rows, size.grid.frames, plan, guided)
            if row is None or row.ms is None:
                continue
            seconds = steps * row.ms / 1000
            content = {"plan": plan, "steps": steps, "guidance": "kept" if guided else "distilled", "seconds": seconds}
            content |= {"way": row.way, "speedup": None if base is None else base / seconds}
            if guided and size.grid.frames == PAPER_FRAMES and size.name in SIZES:
                content["paper_speedup"] = PAPER_SPEEDUPS.get((plan, steps))
            found.append(content)
    return found


def best_step(rows: Sequence[StepRow], frames: int, plan: str, guided: bool) -> StepRow | None:
    """The fastest of our ways for a plan."""
    ways = [row_where(rows, frames=frames, plan=plan, way=way, guided=guided) for way in (EAGER, COMPILED)]
    timed = [row for row in ways if row is not None]
    return min(timed, key=lambda row: row.ms or 0.0) if timed else None


def whole_video(backbone: BareBackbone, plans: Plans, rows: Sequence[StepRow], kernel: str) -> dict[str, Any] | None:
    """One video of 20 steps run by the sampling loop itself, beside 20 x the measured step; None without a step."""
    frames = backbone.size.grid.frames
    plan = CHOSEN if CHOSEN in plans else list(plans)[-1]
    timed = [(guided, best_step(rows, frames, plan, guided)) for guided in (False, True)]
    found = next(((guided, row) for guided, row in timed if row is not None), None)
    if found is None or found[1].ms is None:
        return None
    guided, row = found
    backbone.put_plan(plans[plan], frames, guided, kernel)
    backbone.make_fast(row.way == COMPILED)
    spec = SampleSpec(1, 1, 1, STUDENT_STEPS, 7.5 if guided else 1.0, "ddim")

    def run() -> float:
        start = time.perf_counter()
        null_text = backbone.null_text if guided else None
        with nullcontext() if row.way == COMPILED else backbone.eagerly():
            sample(backbone, spec, backbone.text, null_text, generators_for([0]), Silent())  # type: ignore[arg-type]
        wait(backbone.device)
        return time.perf_counter() - start

    run()
    seconds, expected = run(), STUDENT_STEPS * found[1].ms / 1000
    gap = seconds / expected - 1
    facts = {"plan": plan, "steps": STUDENT_STEPS, "guidance": "kept" if guided else "distilled", "way": row.way}
    return {**facts, "seconds": seconds, "expected": expected, "gap": gap, "agrees": abs(gap) <= AGREEMENT}


def other_parts(
    size: ModelSize, device: torch.device, dtype: torch.dtype, seconds: float, least_repeats: int
) -> list[dict[str, Any]]:
    """Seconds of the text encoder for one prompt and of the VAE's decoding, random weights, at sizes that fit."""
    is_large = size.text_width >= 4096
    text = T5Config(
        vocab_size=VOCABULARY,
        d_model=size.text_width,
        feed_forward_proj="gated-gelu",
        **(MT5_XXL if is_large else SMALL_T5),
    )
    ids = torch.ones(1, size.padded_tokens, dtype=torch.long, device=device)
    latents = torch.randn(1, LATENT_CHANNELS, size.grid.frames, 2 * size.grid.rows, 2 * size.grid.cols).to(
        device, dtype
    )

    def decoding() -> Callable[[], object]:
        vae = random_module(lambda: CausalVAEModel(VAE if is_large else SMALL_VAE), device, dtype)
        if is_large:
            vae.enable_tiling()
        return lambda: vae.decode(latents)

    def reading() -> Callable[[], object]:
        encoder = random_module(lambda: T5EncoderModel(text), device, dtype)
        return lambda: encoder(input_ids=ids)

    found = []
    for name, prepared in (("text encoder", reading), ("VAE decoding", decoding)):
        work = prepared()
        with torch.no_grad():
            times = time_in_turns({name: work}, clock_for(device), seconds, least_repeats)[name]
        found.append({"part": name, "seconds": times.median / 1000, "spread": times.spread})
        del work
    return found


def random_module(make: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Any:
    """The module that `make` gives, made on its device with random weights."""
    with torch.device("meta"):
        module: nn.Module = make().to(dtype)
    module = module.to_empty(device=device).eval()
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.detach().normal_(0, WEIGHT_STD)
    return module


def wait(device: torch.device) -> None:
    """On CUDA, until all work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
