"""Train the embedded model from scratch: VAE with normalised latents, text encoder, transformer, pipeline folder."""

from __future__ import annotations

import datetime
import math
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.changes import changes_of, has_unplaced, place
from vdit_cli.artifacts.receipt import Ran, Receipt, this_machine
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.backbones.devices import pick_device
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.data.shapes_prompts import LONGEST_CAPTION
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.checkpoints import check_goes_on, newest_iteration
from vdit_cli.distillation.metrics import last_loss
from vdit_cli.distillation.shapes_folder import (
    SCHEDULER_CONFIG,
    build_tokenizer,
    model_card,
    save_text,
    write_pipeline,
)
from vdit_cli.distillation.shapes_text import train_text
from vdit_cli.distillation.shapes_transformer import ClipPool, errors_by_time, lost_times, train_transformer
from vdit_cli.distillation.shapes_vae import UNSEEN_SEED, measure_psnr, normalise_latents, train_vae
from vdit_cli.errors import EvditError, setting
from vdit_cli.knobs import Section, deciding, flat
from vdit_cli.reader import read as read_file
from vdit_cli.recipe_training import ShapesTextOptions, ShapesVaeOptions, TrainShapesOptions
from vdit_cli.sampling.announcement import counted, say_options
from vdit_cli.sampling.peak import PeakMemory
from vdit_cli.timing import Progress

FACTS = "training.json"
JUDGED_CLIPS = 32
FINISHED = "finished"
"""Folder of a part's last weights, with FACTS written last."""


def train_shapes(
    options: TrainShapesOptions, out: Path | None, progress: Progress, allow_changed: bool = False
) -> Path:
    """Train, or go on training, the embedded model in the run `out`, and return its pipeline folder, `out/model`.

    The parts stand in `out/vae`, `out/text` and `out/transformer`; each has its metrics and
    checkpoints. Without `out` the run is `runs/<date>-train-shapes-shapes`. With `allow_changed` a run that was begun
    with other values goes on with these; parts that are finished stay. Raises EvditError (exit 2) for such a run
    otherwise, and Interrupted after saving.
    """
    check_options(options)
    device = pick_device(options.device)
    values = deciding(options)
    request = Request("train-shapes", "shapes", values, origins=dict(options.origins))
    run = RunDir.start(out, request, allow_changed)
    if run.is_done():
        progress.say(f"{run.path} is done already")
        return run.find("model")
    part = options.transformer
    progress.say(
        f"shapes: its video autoencoder, text encoder and transformer from nothing, {part.iterations} iterations of "
        f"{counted(part.batch_size, 'clip')} the last, {device}"
    )
    say_options("train_shapes", options, {}, "shapes", progress)
    with run:
        with PeakMemory(device) as memory:
            seconds = _train(options, run, device, progress)
        receipt = Receipt(
            asked=values,
            ran=Ran("shapes", device=str(device), dtype="bfloat16" if device.type == "cuda" else "float32"),
            seconds=seconds,
            peak_memory_bytes=memory.peak,
            machine=this_machine((torch.cuda.get_device_name(device),) if device.type == "cuda" else ()),
            output="model",
        )
        receipt.write(run.path / "receipt.json")
        run.add_output("model", "model")
    return run.find("model")


MOST_LENGTH = 512
"""Tokens of a prompt that Open-Sora-Plan reads."""


def check_options(options: TrainShapesOptions) -> None:
    """Raise EvditError (exit 2) for sizes that don't fit each other."""
    part = options.transformer
    if part.clips % part.fresh_clips:
        raise EvditError(
            f"clips is {part.clips}: it must be a multiple of fresh_clips, {part.fresh_clips}",
            where=options.transformer.where("clips") or "train_shapes.transformer.clips",
            next_steps=[
                f"--set train_shapes.transformer.clips={-(-part.clips // part.fresh_clips) * part.fresh_clips}"
            ],
        )
    if not LONGEST_CAPTION <= options.text.length <= MOST_LENGTH:
        raise EvditError(
            f"length is {options.text.length}: the longest caption has {LONGEST_CAPTION} tokens, and {MOST_LENGTH} is "
            "the most that is read",
            where=options.text.where("length") or "train_shapes.text.length",
            next_steps=[f"--set train_shapes.text.length={ShapesTextOptions().length}"],
        )
    for name, sizes, key, value in (
        ("transformer", part, "head_dim", part.head_dim),
        ("text", options.text, "width", options.text.width),
    ):
        if value % 6:
            raise EvditError(
                f"{key} is {value}: it must be a multiple of 6",
                where=sizes.where(key) or f"train_shapes.{name}.{key}",
                next_steps=[f"--set train_shapes.{name}.{key}={-(-value // 6) * 6}"],
            )
    check_channels(options.vae)


def check_channels(vae: ShapesVaeOptions) -> None:
    """Raise EvditError (exit 2) where the autoencoder's levels are not four, or the norms' groups don't divide them."""
    width, multiples, groups = vae.hidden_size, vae.hidden_size_mult, vae.norm_groups
    usual = ShapesVaeOptions().hidden_size_mult
    if len(multiples) != len(usual) or min(multiples) < 1:
        raise EvditError(
            f"hidden_size_mult is {list(multiples)}: it must be {len(usual)} whole numbers of at least 1, one a level",
            where=vae.where("hidden_size_mult") or "train_shapes.vae.hidden_size_mult",
            next_steps=[setting("train_shapes.vae.hidden_size_mult", usual)],
        )
    # The norm of the first block of a level sees the channels of the level before, so of the first level hidden_size.
    for channels in (width, *(width * each for each in multiples)):
        if channels % groups:
            raise EvditError(
                f"norm_groups is {groups}: it must divide the channels of each level, {channels} of one",
                where=vae.where("hidden_size") or vae.where("norm_groups") or "train_shapes.vae.norm_groups",
                next_steps=[
                    f"--set train_shapes.vae.hidden_size={-(-width // groups) * groups}",
                    f"--set train_shapes.vae.norm_groups={math.gcd(width, groups)}",
                ],
            )


def _train(options: TrainShapesOptions, run: RunDir, device: torch.device, progress: Progress) -> dict[str, float]:
    """All parts in order, each skipped where it is finished, then the pipeline folder; the seconds of each part."""
    folder = run.path
    if run.before is not None:
        checkpoints = folder / "transformer" / "checkpoints"
        check_goes_on(checkpoints, newest_iteration(checkpoints), options.transformer.iterations)
    part = next((part for part in ("vae", "text") if not run.is_whole(part)), "transformer")
    if has_unplaced(run.manifest):
        place(run.manifest, part, newest_iteration(folder / part / "checkpoints"))
        run.save()
    _prefer_speed(device)
    compiled = device.type == "cuda"
    vae, vae_facts = _finished_vae(options, run, device, compiled, progress)
    tokenizer = build_tokenizer(options.text.length)
    text, text_facts = _finished_text(options, tokenizer, run, device, progress)
    schedule = NoiseSchedule.from_config(SCHEDULER_CONFIG)
    model, trained = train_transformer(
        vae,
        text,
        tokenizer,
        schedule,
        options.transformer,
        options.seed,
        folder / "transformer",
        device,
        compiled,
        progress,
    )
    errors = _judge(options, vae, text, tokenizer, model, schedule, device, progress)
    facts = {
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "a CPU",
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "vae": vae_facts,
        "text": text_facts,
        "transformer": {
            "iterations": trained.iterations,
            "batch": options.transformer.batch_size,
            "seconds": trained.seconds,
            "loss": last_loss(folder / "transformer" / "metrics.jsonl"),
            "errors": {str(time): error for time, error in errors.items()},
        },
        "changes": changes_of(run.manifest),
    }
    recipe = yaml.safe_dump({"train_shapes": nested(options)}, sort_keys=False).strip()
    write_pipeline(folder / "model", model, text, vae, tokenizer, model_card(facts, recipe))
    write_json(folder / "model" / FACTS, facts)
    return {"vae": vae_facts["seconds"], "text": text_facts["seconds"], "transformer": trained.seconds}


def _judge(
    options: TrainShapesOptions,
    vae: CausalVAEModel,
    text: T5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    model: OpenSoraT2V,
    schedule: NoiseSchedule,
    device: torch.device,
    progress: Progress,
) -> dict[int, float]:
    """The model's errors by time on unseen clips; says which times are lost."""
    count = min(JUDGED_CLIPS, options.vae.measured_clips)
    clips = replace(options.transformer, clips=count, fresh_clips=count, left_out=0.0)
    pool = ClipPool(vae, text, tokenizer, clips, UNSEEN_SEED, device)
    pool.write(0, count)
    errors = errors_by_time(model, pool, schedule.to(device))
    progress.say("transformer: error of v " + ", ".join(f"{error:.3f} at t = {t}" for t, error in errors.items()))
    lost = lost_times(errors)
    if lost:
        progress.say(
            f"warning: the transformer does not know t = {', '.join(map(str, lost))}: its time modulation has jumped. "
            "Videos hardly show it, students are taught there; loss_0_99 in transformer/metrics.jsonl tells when"
        )
    return errors


def nested(options: Section) -> dict[str, Any]:
    """A section's values as plain nested data, as a recipe file holds them."""
    plain: dict[str, Any] = {}
    for key, value in flat(options):
        *path, name = key.split(".")
        inner = plain
        for step in path:
            inner = inner.setdefault(step, {})
        inner[name] = list(value) if isinstance(value, tuple) else value
    return plain


def _finished_vae(
    options: TrainShapesOptions, run: RunDir, device: torch.device, compiled: bool, progress: Progress
) -> tuple[CausalVAEModel, dict[str, Any]]:
    """The trained and normalised VAE and what is known of it, read from the run where it is finished and whole."""
    folder = run.path / "vae"
    finished = folder / FINISHED
    if run.is_whole("vae"):
        vae = CausalVAEModel.from_pretrained(finished, device=device).eval().requires_grad_(False)
        return vae, read_file(dict[str, Any], finished / FACTS, "training's facts")
    vae, trained = train_vae(options.vae, options.seed, folder, device, compiled, progress)
    progress.say("VAE: measuring the latents and the PSNR on unseen clips")
    normalise_latents(vae, options.vae.measured_clips, device)
    facts: dict[str, Any] = {
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
    run.add_output("vae", f"vae/{FINISHED}")
    return vae, facts


def _finished_text(
    options: TrainShapesOptions,
    tokenizer: PreTrainedTokenizerBase,
    run: RunDir,
    device: torch.device,
    progress: Progress,
) -> tuple[T5EncoderModel, dict[str, Any]]:
    """The trained text encoder and what is known of it, read from the run where it is finished and whole."""
    folder = run.path / "text"
    finished = folder / FINISHED
    if run.is_whole("text"):
        text = T5EncoderModel.from_pretrained(finished).to(device).eval().requires_grad_(False)
        return text, read_file(dict[str, Any], finished / FACTS, "training's facts")
    text, trained, read = train_text(tokenizer, options.text, options.seed, folder, device, progress)
    facts: dict[str, Any] = {
        "iterations": trained.iterations,
        "batch": options.text.batch_size,
        "seconds": trained.seconds,
        "loss": last_loss(folder / "metrics.jsonl"),
        "read": read,
    }
    progress.say(f"text encoder: reads {read:.3f} of held-out captions without a mistake")
    save_text(text, finished)
    write_json(finished / FACTS, facts)
    run.add_output("text", f"text/{FINISHED}")
    return text, facts


def _prefer_speed(device: torch.device) -> None:
    """Let a GPU use tensor cores for what stays in float32 and pick its fastest convolutions."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
