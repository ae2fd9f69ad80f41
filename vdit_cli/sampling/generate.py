"""Prompt to file: everything that can be wrong is found before weights load; `making.py` then makes the videos."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.places import expanded
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import Request
from vdit_cli.artifacts.run_form import known_manifest
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.artifacts.video_file import check_encoder, rate_of
from vdit_cli.backbones.base import AddsAdapters, Backbone, cut_of
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.diffusion.schedules import SPACINGS
from vdit_cli.diffusion.solvers import SCHEDULERS, make_scheduler, set_steps, steps_of
from vdit_cli.errors import EvditError, Interrupted, quoted, unknown_name
from vdit_cli.knobs import deciding
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling.announcement import counted, cut_text, listed, prompt_doubts, say_options, summary
from vdit_cli.sampling.compiling import is_compiled
from vdit_cli.sampling.dense_steps import check_dense_steps, parts_of
from vdit_cli.sampling.making import Job, Making, filled
from vdit_cli.sampling.memory import Placing, check_memory
from vdit_cli.sampling.outputs import (
    COMMAND,
    Clip,
    check_file,
    check_folder,
    clips_in,
    is_single,
    named_place,
    open_run,
    waiting,
    write_receipt,
)
from vdit_cli.sampling.plans import AUTO, bind_plan, check_kernel, find_plan, times_here
from vdit_cli.sampling.prompts import collect_prompts
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.sampling.sidecar import loras_of
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress, Stopwatch

MOST_ABOVE = 2
"""A student lies at most so far below its run, in steps-4/student."""


@dataclass(frozen=True)
class Asked:
    """What a person asked for beside the options: prompts as words or as a file, and the place of the result."""

    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    out: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Made:
    """A finished video: where it is, and its receipt, which also lies beside it."""

    path: Path
    receipt: Receipt


def generate(options: GenerateOptions, asked: Asked, progress: Progress) -> list[Made]:
    """Make the videos and return where each is and its receipt, in order, those of an earlier start included.

    All of `options` and `asked` is checked before any weight is loaded. Raises EvditError with the exit code that
    fits, Interrupted when the person asked to stop; what is finished by then stays.
    """
    prompts = collect_prompts(asked.prompts, asked.prompts_file)
    check_options(options)
    clock = Stopwatch()
    out = named_place(asked.out) if asked.out is not None else None
    if out is not None and is_single(out, prompts, options.num, asked.prompts_file is not None):
        clip = Clip(prompts[0], options.seed, out)
        check_file(clip, asked.overwrite)
        if options.files != "mp4":
            where = options.where("files") or "generate.files"
            progress.say(f"{where} has no effect: the name of a single video tells what it is written as")
        with clock.phase("load"):
            job = prepare(options, prompts, progress)
        finished = Making(job, [clip], None, asked.overwrite, clock, progress).videos()
        return [Made(clip.path, Receipt.read(clip.sidecar)) for clip in finished]
    if out is not None:
        check_folder(out, asked.overwrite)
    check_encoder(f".{options.files}")
    with clock.phase("load"):
        job = prepare(options, prompts, progress)
    with open_run(out, request_of(job, prompts), asked.overwrite) as run:
        clips = clips_in(run.path, prompts, options.num, options.seed, options.files)
        left = waiting(run, clips)
        if len(left) < len(clips):
            progress.say(f"{len(clips) - len(left)} of {len(clips)} videos in {run.path} are done already")
        for clip in left:
            if clip.role in run.manifest["outputs"]:
                progress.say(f"{clip.path.name} or its receipt is gone or damaged: it is made again")
        making = Making(job, left, run, True, clock, progress, len(clips) - len(left))
        try:
            making.videos()
        except Interrupted:
            write_receipt(run, [clip for clip in clips if clip not in left or clip in making.finished])
            raise
        write_receipt(run, clips)
        return [Made(clip.path, Receipt.read(clip.sidecar)) for clip in clips]


def check_options(options: GenerateOptions) -> None:
    """Raise EvditError (exit 2) for names that are in no table and numbers that mean nothing; opens nothing."""
    for key in ("num", "batch", "steps", "video_frames"):
        value = getattr(options, key)
        if value is not None and value < 1:
            flag = "--frames" if key == "video_frames" else f"--{key}"
            raise EvditError(f"{key} is {value}: it must be at least 1", where=f"{flag} {value}")
    if options.fps is not None:
        rate_of(options.fps)
    if options.guidance is not None and not math.isfinite(options.guidance):
        raise EvditError(f"guidance is {options.guidance}: it must be a number", where=f"--guidance {options.guidance}")
    if options.scheduler is not None and options.scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", options.scheduler, SCHEDULERS, where=f"--scheduler {options.scheduler}")
    steps_of(options.steps, options.timesteps, 1)
    check_kernel(options.kernel)


def prepare(options: GenerateOptions, prompts: Sequence[str], progress: Progress) -> Job:
    """Open the model and check prompts, size, steps, masks, kernel and memory against it. Loads no weights."""
    source = find_source(options.model, where=f"--model {options.model}")
    backbone = open_backbone(
        source,
        device=options.device,
        dtype=options.dtype,
        text_encoder=options.text_encoder,
        offload=options.offload,
        vae_tiling=options.vae_tiling,
        checkpoint=options.checkpoint,
        lora=options.lora,
        progress=progress,
        video_frames=options.video_frames,
        height=options.height,
        width=options.width,
    )
    own = backbone.defaults
    spec = SampleSpec(
        video_frames=own.video_frames if options.video_frames is None else options.video_frames,
        height=own.height if options.height is None else options.height,
        width=own.width if options.width is None else options.width,
        steps=steps_of(options.steps, options.timesteps, own.steps),
        guidance=own.guidance if options.guidance is None else options.guidance,
        scheduler=own.scheduler if options.scheduler is None else options.scheduler,
        timesteps=options.timesteps,
    )
    backbone.latent_shape(spec.video_frames, spec.height, spec.width)
    laid_out = make_scheduler(spec.scheduler, backbone.scheduler_config, spec.timesteps)
    timesteps = set_steps(laid_out, spec.steps).tolist()
    doubts = prompt_doubts(backbone, prompts, options.strict)
    plan = find_plan(options.masks, backbone, spec, options.allow_other_weights)
    check_dense_steps(options.dense_steps, spec.steps, plan, options.masks)
    need = check_memory(backbone, spec, Placing(options.offload, options.vae_tiling, options.batch))
    progress.detail(f"weights of the transformer: {backbone.weights_digest}")  # damaged files are found now
    seeds = seeds_text(options, len(prompts))
    progress.say(summary(backbone, spec, seeds, max(need.values()), plan, options.dense_steps))
    negative = own.negative if options.negative is None else options.negative
    fps = rate_of(options.fps or own.fps)
    say_options("generate", options, filled(options.values(), spec, negative, fps), backbone.name, progress)
    runs = Sampler(spec.scheduler, tuple(timesteps), spec.guidance)
    warnings = (
        base_doubts(options) + sampler_doubts(backbone, spec, runs) + adapter_doubts(options, backbone, plan, runs)
    )
    warnings += idle_options(options, backbone, spec, plan, len(prompts))
    for line in (*warnings, *doubts.values()):
        progress.say(f"warning: {line}")
    batch = options.batch * (2 if spec.guided else 1)
    costs = times_here(backbone, options.kernel, progress)
    told = []
    for each in parts_of(plan, options.dense_steps, spec.steps):
        told += bind_plan(backbone, each, batch, options.kernel, options.strict, progress, costs)[1]
    compiled = is_compiled(options.compile, options.offload, backbone, spec, progress)
    said = (tuple(told), tuple(warnings), doubts)
    return Job(options, backbone, spec, plan, tuple(timesteps), negative, fps, *said, compiled, costs)


def sampler_doubts(backbone: Backbone, spec: SampleSpec, runs: Sampler) -> list[str]:
    """Where a model is asked for another length or size, or a student for another sampler, than it was made for.

    A student's timesteps are compared with those that the sampler `runs`, whatever laid them out; where only their
    number was asked for, that is told instead.
    """
    made_for = backbone.defaults.video_frames
    found = []
    if spec.video_frames != made_for:
        found.append(
            f"{backbone.name} was made for {made_for} frames: {spec.video_frames} may look worse (--frames {made_for})"
        )
    size, made = (spec.height, spec.width), (backbone.defaults.height, backbone.defaults.width)
    if size != made:
        flags = f"--height {made[0]} --width {made[1]}"
        sizes = " x ".join(map(str, made)), " x ".join(map(str, size))
        found.append(f"{backbone.name} was made for {sizes[0]} pixels: {sizes[1]} may look worse ({flags})")
    own: Sampler | None = getattr(backbone, "sampler", None)
    if own is None:
        return found
    pairs: list[tuple[str, Any, Any]] = [("steps", spec.steps, own.steps), ("scheduler", spec.scheduler, own.scheduler)]
    if spec.timesteps is not None or spec.steps == own.steps:
        given, trained = (",".join(f"{t:g}" for t in each.timesteps) for each in (runs, own))
        pairs.append(("timesteps", given, trained))
    for name, asked, trained in (*pairs, ("guidance", spec.guidance, own.guidance)):
        if asked != trained:
            found.append(f"this student was trained for {name} {trained}: {name} {asked} may look worse")
    return found


def base_doubts(options: GenerateOptions) -> list[str]:
    """Where the run that made a checkpoint tells of another model than it is put on now.

    Models are the same where both are folders that are there and one, or where one of them is not and names are equal.
    """
    if options.checkpoint is None:
        return []
    place = expanded(options.checkpoint, f"--checkpoint {options.checkpoint}").resolve()
    for folder in (place, *list(place.parents)[:MOST_ABOVE]):
        told = known_manifest(folder) or {}
        if str(told.get("command")).startswith("distill-"):
            base, now = (os.path.expanduser(str(each)) for each in (told.get("model"), options.model))
            are_here = os.path.exists(base) and os.path.exists(now)
            same = os.path.samefile(base, now) if are_here else Path(base).name == Path(now).name
            what = f"{options.checkpoint} was trained from the model {base}, and is put on {options.model}: "
            return [] if same else [f"{what}VAE and text encoder may be others (--model {quoted(base)})"]
    return []


def adapter_doubts(options: GenerateOptions, backbone: Backbone, plan: MaskPlan, runs: Sampler) -> list[str]:
    """Adapters beside other weights than they were trained on, and what `--lora` leaves out of a student's.

    What is left out is told where another sampler `runs`, or another plan; and how to have it, where that works.
    """
    if not isinstance(backbone, AddsAdapters):
        return []
    strangers = backbone.trained_elsewhere()
    found = [
        f"the adapter {each.path} was trained on weights {each.lineage.weights[0][:12]}, and the model's are others: "
        "it may look worse"
        for each in strangers
    ]
    own: Sampler | None = getattr(backbone, "sampler", None)
    for each in backbone.loras:
        left, is_whole = [], each.is_checkpoint
        if each.sampler not in (None, own, runs):
            told = each.sampler
            left.append(f"sampler ({counted(told.steps, 'step')} of {told.scheduler}, guidance {told.guidance:g})")
        if options.masks == AUTO and each.lineage.plan is not None:
            lies = each.brings_plan
            is_whole = is_whole and lies
            if each.lineage.plan != plan.digest:
                left.append(f"plan {each.lineage.plan[:12]}{'' if lies else ', which does not lie beside it'}")
        takes = is_whole and options.checkpoint is None and each.lineage.weights[:1] in ((), backbone.lineage[:1])
        step = f" (--checkpoint {quoted(each.file.parent)} takes that too)" if takes else ""
        if left:
            found.append(f"--lora {each.path} adds weights alone, not the adapter's {listed(left)}{step}")
    return found


def idle_options(
    options: GenerateOptions, backbone: Backbone, spec: SampleSpec, plan: MaskPlan, prompts: int
) -> list[str]:
    """Options that were asked for and change nothing here, each with the reason; and a negative prompt that is cut."""
    found: dict[str, str] = {}
    if options.negative and not spec.guided:
        own: Sampler | None = getattr(backbone, "sampler", None)
        cause = ": this student has it distilled in" if own is not None and own.guidance == spec.guidance else ""
        found["negative"] = f"guidance {spec.guidance:g} asks for no negative prompt{cause}"
    if options.batch > prompts * options.num == 1:
        found["batch"] = "there is one video to make"
    if options.allow_other_weights and plan.searched_on is None:
        found["allow_other_weights"] = f"masks {options.masks} were searched on no weights"
    if spec.steps == 1 and options.timesteps in SPACINGS and options.timesteps != "trailing":
        found["timesteps"] = "a single step lies at the noisiest timestep under any spacing"
    size = (1, spec.video_frames, spec.height, spec.width)
    if options.vae_tiling and backbone.working_bytes("vae", *size, True) == backbone.working_bytes("vae", *size, False):
        found["vae_tiling"] = "the video fits in one tile"
    idle = [f"{options.where(key) or f'generate.{key}'} has no effect: {why}" for key, why in found.items()]
    cut = cut_of(backbone, options.negative) if options.negative and spec.guided else None
    return idle + ([f"of the negative prompt {backbone.name} {cut_text(cut)}"] if cut else [])


def seeds_text(options: GenerateOptions, prompts: int) -> str:
    """The seeds of a command's videos in words: "seed 4", or "seeds 4 to 9"."""
    last = options.seed + prompts * options.num - 1
    return f"seed {last}" if last == options.seed else f"seeds {options.seed} to {last}"


def request_of(job: Job, prompts: Sequence[str]) -> Request:
    """What decides the videos of a folder: the prompts, and options with the defaults filled in."""
    values = filled(deciding(job.options), job.spec, job.negative, job.fps)
    if values["files"] == "mp4":
        del values["files"]  # folders of an evdit that wrote nothing else go on
    digests = {"plan": job.plan.digest, "weights": job.backbone.weights_digest}
    return Request(
        command=COMMAND,
        model=job.options.model,
        values={**values, **digests, "lora": loras_of(job.backbone), "prompts": list(prompts)},
        origins=dict(job.options.origins),
        lineage=(job.backbone.weights_digest, *job.backbone.lineage),
        length="num" if len(prompts) == 1 else None,  # of several prompts later ones' seeds move
    )
