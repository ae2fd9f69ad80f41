"""What looking at a model on the way shares: how it samples, which steps are seen, and the prompts' text states."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack

from vdit_cli.backbones.base import Backbone, TextStates, as_read
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.diffusion.solvers import SCHEDULERS, make_scheduler, set_steps
from vdit_cli.errors import OUT_OF_MEMORY, EvditError, Interrupted, brief, unknown_name
from vdit_cli.reader import MOST_SEED
from vdit_cli.recipe import LookingOptions
from vdit_cli.sampling.making import TEXT_CHUNK
from vdit_cli.sampling.memory import free_bytes, gib, smaller_videos
from vdit_cli.sampling.peak import out_of_memory_told
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.timing import Progress, Stopwatch


def open_model(options: LookingOptions, progress: Progress) -> Backbone:
    """The model that the options name, weights not yet loaded. Raises EvditError with the exit code that fits."""
    if options.scheduler is not None and options.scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", options.scheduler, SCHEDULERS, where=f"--scheduler {options.scheduler}")
    return open_backbone(
        find_source(options.model, where=f"--model {options.model}"),
        device=options.device,
        dtype=options.dtype,
        text_encoder=options.text_encoder,
        offload=options.offload,
        checkpoint=options.checkpoint,
        progress=progress,
        video_frames=options.video_frames,
        height=options.height,
        width=options.width,
    )


def spec_of(options: LookingOptions, backbone: Backbone) -> SampleSpec:
    """How the model samples: its own defaults where nothing else was asked for."""
    own = backbone.defaults
    return SampleSpec(
        video_frames=own.video_frames if options.video_frames is None else options.video_frames,
        height=own.height if options.height is None else options.height,
        width=own.width if options.width is None else options.width,
        steps=own.steps if options.steps is None else options.steps,
        guidance=own.guidance if options.guidance is None else options.guidance,
        scheduler=own.scheduler if options.scheduler is None else options.scheduler,
    )


def checked_grid(backbone: Backbone, spec: SampleSpec) -> VideoGrid:
    """The token grid. Raises EvditError for a model without sites and for a video of one latent frame."""
    if backbone.architecture.layers < 1:
        raise EvditError(
            f"{backbone.name} has no 3D self-attention: there are no tiles",
            where="--model",
            next_steps=["a model that attends over all frames at once"],
        )
    grid = backbone.grid(spec.video_frames, spec.height, spec.width)
    if grid.frames < 2:
        raise EvditError(
            f"{spec.video_frames} frames are one latent frame of {backbone.name}: tiles need at least 2 to compare",
            where=f"--frames {spec.video_frames}",
            next_steps=[f"--frames {backbone.defaults.video_frames}"],
        )
    return grid


def read_shares(text: str, where: str) -> tuple[float, ...]:
    """Shares of the trajectory with commas between them, sorted. Raises EvditError outside 0 to 1."""
    found: set[float] = set()
    for part in text.split(","):
        try:
            share = float(part)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            raise EvditError(
                f"{part.strip()!r} is no share of the trajectory: it must be a number from 0 to 1",
                where=where,
                next_steps=["--at 0.1,0.5,0.9"],
            )
        found.add(share)
    return tuple(sorted(found))


def read_seeds(text: str, where: str) -> tuple[int, ...]:
    """Different seeds with commas between them, in their order. Raises EvditError for other text."""
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not (part.isascii() and part.isdigit() and len(part) < 20)]
    wrong += [part for part in parts if part not in wrong and int(part) > MOST_SEED]
    if wrong:
        rule = f"{brief(wrong[0])} is no seed: it must be a whole number from 0 to {MOST_SEED}"
        raise EvditError(rule, where=where, next_steps=["--seeds 0,1"])
    return tuple(dict.fromkeys(int(part) for part in parts))


def check_memory(
    what: str, backbone: Backbone, spec: SampleSpec, offload: str, bytes_of: Callable[[SampleSpec, str], int]
) -> int:
    """Bytes that `what` needs on the device, by `bytes_of` a video and an offload. Raises EvditError (exit 4).

    The error names the offloads under which it fits, else a smaller video that does.
    """
    need, free = bytes_of(spec, offload), free_bytes(backbone.device)
    if need <= free:
        return need
    others = [other for other in ("model", "block") if other != offload]
    ways = [f"--offload {other}" for other in others if bytes_of(spec, other) <= free]
    smaller = (flags for other, flags in smaller_videos(spec) if bytes_of(other, "block") <= free)
    if not ways:
        ways = [f"{flags} --offload block" for flags in [next(smaller, "")] if flags]
    raise EvditError(
        f"the {what} of {spec.video_frames} frames of {spec.height} x {spec.width} needs about {gib(need)}, "
        f"and {gib(free)} are free on {backbone.device}",
        where=f"--offload {offload}",
        next_steps=ways or [f"a machine with {gib(need)} of memory"],
        exit_code=OUT_OF_MEMORY,
    )


def timesteps_of(backbone: Backbone, spec: SampleSpec) -> tuple[float, ...]:
    """The timesteps of the whole trajectory, from the noisiest on."""
    return tuple(set_steps(make_scheduler(spec.scheduler, backbone.scheduler_config), spec.steps).tolist())


def steps_at(shares: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """The steps at these shares of the trajectory, counted from 0, each once."""
    return tuple(sorted({round(share * (steps - 1)) for share in shares}))


def read_texts(
    backbone: Backbone, prompts: tuple[str, ...], guided: bool, clock: Stopwatch, progress: Progress
) -> tuple[list[TextStates], TextStates | None]:
    """Text states of each prompt and, where guidance asks, of the negative prompt, on the CPU. Raises Interrupted."""
    texts = [as_read(backbone, prompt) for prompt in prompts]
    texts += [backbone.defaults.negative] if guided else []
    states: list[TextStates] = []
    with ExitStack() as stack, out_of_memory_told("read the prompts", ["--device cpu"]):
        with clock.phase("load"):
            stack.enter_context(backbone.resident("text"))
        progress.stage("reading the prompts", math.ceil(len(texts) / TEXT_CHUNK))
        for start in range(0, len(texts), TEXT_CHUNK):
            if progress.should_stop():
                raise Interrupted("stopped while reading the prompts", next_steps=["the same command again"])
            with clock.phase("text"):
                chunk = backbone.encode_text(texts[start : start + TEXT_CHUNK]).to("cpu", backbone.dtype)
            rows = range(len(chunk.states_BLC))
            states += [TextStates(chunk.states_BLC[i : i + 1], chunk.mask_BL[i : i + 1]) for i in rows]
            progress.advance()
    return (states[:-1], states[-1]) if guided else (states, None)
