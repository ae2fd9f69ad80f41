"""Train the embedded model from scratch: VAE, normalised latents, transformer with text encoder, pipeline folder."""

from __future__ import annotations

import datetime
import json
import platform
from pathlib import Path
from typing import Any

import torch

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.shapes_folder import (
    SCHEDULER_CONFIG,
    build_tokenizer,
    last_loss,
    model_card,
    write_pipeline,
)
from vdit_cli.distillation.shapes_transformer import train_transformer
from vdit_cli.distillation.shapes_vae import measure_psnr, normalise_latents, train_vae
from vdit_cli.recipe import TrainShapesOptions
from vdit_cli.timing import Progress

FACTS = "training.json"


def train_shapes(options: TrainShapesOptions, folder: Path, device: torch.device, progress: Progress) -> Path:
    """Train (or go on training) in `folder` and return the finished pipeline folder, `folder/model`.

    The VAE stands in `folder/vae`, the transformer and text encoder in `folder/transformer`; each part has its
    metrics, checkpoints and, when it is done, its weights. Raises Interrupted after saving.
    """
    _prefer_speed(device)
    compiled = device.type == "cuda"
    vae, vae_facts = _finished_vae(options, folder / "vae", device, compiled, progress)
    tokenizer = build_tokenizer(options.transformer.text_length)
    schedule = NoiseSchedule.from_config(SCHEDULER_CONFIG)
    model, trained = train_transformer(
        vae, tokenizer, schedule, options.transformer, options.seed, folder / "transformer", device, compiled, progress
    )
    facts = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "a CPU",
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "vae": vae_facts,
        "transformer": {
            "iterations": trained.iterations,
            "batch": options.transformer.batch_size,
            "seconds": trained.seconds,
            "loss": last_loss(folder / "transformer" / "metrics.jsonl"),
        },
    }
    write_pipeline(folder / "model", model, vae, tokenizer, model_card(facts, options))
    write_json(folder / "model" / FACTS, facts)
    return folder / "model"


def _finished_vae(
    options: TrainShapesOptions, folder: Path, device: torch.device, compiled: bool, progress: Progress
) -> tuple[CausalVAEModel, dict[str, Any]]:
    """The trained and normalised VAE and what is known of it, read from `folder` where it is finished already."""
    finished = folder / "finished"
    if (finished / FACTS).exists():
        vae = CausalVAEModel.from_pretrained(finished, device=device).eval().requires_grad_(False)
        return vae, json.loads((finished / FACTS).read_text(encoding="utf-8"))
    vae, trained = train_vae(options.vae, options.seed, folder, device, compiled, progress)
    progress.say("VAE: measuring the latents and the PSNR on unseen clips")
    normalise_latents(vae, options.vae.measured_clips, device)
    facts = {
        "iterations": trained.iterations,
        "batch": options.vae.batch_size,
        "seconds": trained.seconds,
        "loss": last_loss(folder / "metrics.jsonl"),
        "clips": options.vae.measured_clips,
        "psnr": measure_psnr(vae, options.vae.measured_clips, device),
    }
    progress.say(f"VAE: {facts['psnr']['all']:.2f} dB on {options.vae.measured_clips} unseen clips")
    vae.save_pretrained(finished)
    write_json(finished / FACTS, facts)
    return vae, facts


def _prefer_speed(device: torch.device) -> None:
    """Let a GPU use tensor cores for what stays in float32 and pick its fastest convolutions."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
