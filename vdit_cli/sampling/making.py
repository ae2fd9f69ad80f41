"""The work of a generation: text of all prompts, then batch after batch denoised, decoded and written.

Letters: B batch, C channels, F latent frames, L text tokens, T pixel frames, H, W pixels.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdit_cli.artifacts.atomic import free_name, replacing_together
from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.stills import is_frame
from vdit_cli.artifacts.video_file import encode, kind_of, write_video
from vdit_cli.attention.bind import Attend, Times
from vdit_cli.backbones.base import Backbone, TextStates, as_read, make_fast
from vdit_cli.errors import FAILED, USAGE, EvditError, Interrupted, quoted
from vdit_cli.knobs import as_json
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling.dense_steps import Switched
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.outputs import Clip, beside_taken, check_file, note_finished, step_aside
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.sampling.sample import SampleSpec, padded, sample
from vdit_cli.sampling.sidecar import metadata_of, receipt_of
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress, Stopwatch

TEXT_CHUNK = 8
"""Prompts encoded at once."""
WRITERS = 4
"""Threads that put videos in place, most of whose time encoder and disk have, while the next ones are decoded."""


@dataclass(frozen=True)
class Job:
    """A model opened for a command, weights not yet loaded, and all that decides its videos."""

    options: GenerateOptions
    backbone: Backbone
    spec: SampleSpec
    plan: MaskPlan
    timesteps: tuple[float, ...]
    negative: str
    fps: Fraction
    fallbacks: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """What was said about the whole command."""
    doubts: Mapping[str, str] = field(default_factory=dict)
    """By prompt, what the model will not understand of it."""
    compiled: bool = False
    costs: Times | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The options with the model's own defaults filled in: what decides the videos, and how they are computed."""
        return filled(self.options.values(), self.spec, self.negative, self.fps)

    def said(self, prompt: str) -> str:
        """The prompt as the text encoder is given it."""
        return as_read(self.backbone, prompt)

    def network_batch(self, videos: int) -> int:
        """Rows in one call of the network for so many videos, their null branches included."""
        return videos * (2 if self.spec.guided else 1)


def filled(values: Mapping[str, Any], spec: SampleSpec, negative: str, fps: Fraction) -> dict[str, Any]:
    """Options by name with a model's own defaults filled in."""
    return {**values, **asdict(spec), "negative": negative, "fps": as_json(fps)}


class Making:
    """The clips of a command that are still to be made; without a `run` it is one clip in a file of its own.

    `made_before` are the clips that earlier starts of the run have finished.
    """

    def __init__(
        self,
        job: Job,
        clips: Sequence[Clip],
        run: RunDir | None,
        overwrite: bool,
        clock: Stopwatch,
        progress: Progress,
        made_before: int = 0,
    ) -> None:
        self.job = job
        self.clips = list(clips)
        self.made_before = made_before
        self.run = run
        self.overwrite = overwrite
        self.clock = clock
        self.progress = progress
        self.finished: list[Clip] = []
        self.memory = PeakMemory(job.backbone.device)

    def videos(self) -> list[Clip]:
        """Make every clip; returns them in order, with the places that they have now.

        Raises Interrupted, saying how many are finished; any other EvditError says it too.
        """
        if not self.clips:
            return []
        batch = self.job.options.batch
        with self.memory, self.kept_told():
            texts, null_text = self.encode()
            for start in range(0, len(self.clips), batch):
                clips = self.clips[start : start + batch]
                switched, latents, seconds = self.denoise(clips, texts, null_text)
                # What is denoised is finished: a Ctrl-C now waits until all of the batch is written.
                self.write(clips, latents, switched, {"denoise": seconds / len(clips)})
                self.stop_here_if_asked()
        return self.finished

    def stop_here_if_asked(self) -> None:
        """Raise Interrupted where the person asked to stop and clips are left."""
        if self.progress.should_stop() and len(self.finished) < len(self.clips):
            raise self.interrupted("stopped")

    def interrupted(self, what: str) -> Interrupted:
        """What is finished, and that the same command goes on."""
        kept = self.kept() if self.run else "nothing was written"
        return Interrupted(f"{what}: {kept}", next_steps=["the same command again"])

    @contextmanager
    def kept_told(self) -> Iterator[None]:
        """Let an error inside say what of a run is finished."""
        try:
            yield
        except EvditError as error:
            if self.run is not None and not isinstance(error, Interrupted):
                error.what += f"; {self.kept()}: the same command goes on"
            raise

    def kept(self) -> str:
        """How many videos of all starts are finished."""
        left = len(self.clips) - len(self.finished)
        return f"{self.made_before + len(self.finished)} videos are finished, {left} are left"

    def encode(self) -> tuple[dict[str, TextStates], TextStates | None]:
        """Text states of each different prompt, on the CPU, and those of the negative prompt where guidance asks."""
        backbone, guided = self.job.backbone, self.job.spec.guided
        prompts = list(dict.fromkeys(clip.prompt for clip in self.clips))
        texts = [self.job.said(prompt) for prompt in prompts] + ([self.job.negative] if guided else [])
        states: list[TextStates] = []
        with ExitStack() as stack, out_of_memory_told("read the prompts", ["--device cpu"]):
            with self.clock.phase("load"):
                stack.enter_context(backbone.resident("text"))
            self.progress.stage("reading the prompts", math.ceil(len(texts) / TEXT_CHUNK))
            for start in range(0, len(texts), TEXT_CHUNK):
                self.stop_here_if_asked()
                with self.clock.phase("text"):
                    chunk = backbone.encode_text(texts[start : start + TEXT_CHUNK]).to("cpu", backbone.dtype)
                rows = range(len(chunk.states_BLC))
                states += [TextStates(chunk.states_BLC[i : i + 1], chunk.mask_BL[i : i + 1]) for i in rows]
                self.progress.advance()
        return dict(zip(prompts, states, strict=False)), states[-1] if guided else None

    def denoise(
        self, clips: Sequence[Clip], texts: dict[str, TextStates], null_text: TextStates | None
    ) -> tuple[Switched, Tensor, float]:
        """What denoised a batch of clips, with its attention; their latents (B, C, F, h, w); the seconds they took."""
        job, clock = self.job, Stopwatch()
        which = self.which(clips)
        less = ["--offload model", "--offload block", "fewer --frames", "--set generate.batch=1"]
        with ExitStack() as stack, out_of_memory_told("denoise", less):
            with self.clock.phase("load"):
                stack.enter_context(job.backbone.resident("transformer"))
                switched = self.switched(job.network_batch(len(clips)))
                make_fast(job.backbone, job.compiled)
            self.progress.stage(f"denoising{which}", job.spec.steps)
            text = joined([texts[clip.prompt] for clip in clips])
            generators = generators_for(clip.seed for clip in clips)
            try:
                with clock.phase("denoise"):
                    latents = sample(
                        job.backbone, job.spec, text, null_text, generators, self.progress, denoise=switched
                    )
            except Interrupted as stopped:
                raise self.interrupted(stopped.what) from stopped
        return switched, latents, clock.seconds["denoise"]

    def which(self, clips: Sequence[Clip]) -> str:
        """Which of all clips these are, those that come next, in words."""
        first = len(self.finished) + 1
        return f" {first}-{first + len(clips) - 1} of {len(self.clips)}" if len(self.clips) > 1 else ""

    def switched(self, batch: int) -> Switched:
        """What denoises a network batch: bound to the plan, or to full attention for the first steps."""
        job = self.job

        def bind(plan: MaskPlan) -> tuple[Attend, ...]:
            """Put a plan on the backbone."""
            return job.backbone.apply_plan(plan, batch, job.options.kernel, costs=job.costs)

        return Switched(job.backbone, job.plan, bind, job.options.dense_steps, job.spec.steps)

    def write(
        self, clips: Sequence[Clip], latents_BCFhw: Tensor, switched: Switched, batch_seconds: Mapping[str, float]
    ) -> None:
        """Decode a batch, put each clip's video and receipt in place meanwhile, then note in the run those that are.

        Raises EvditError for the first that can't be; a clip that was not decoded by then is left.
        """
        job = self.job
        putting: list[Future[Clip]] = []
        try:
            with ExitStack() as stack, ThreadPoolExecutor(WRITERS, thread_name_prefix="write") as writers:
                less = ["--vae-tiling", "--offload model", "fewer --frames"]
                stack.enter_context(out_of_memory_told("decode", less))
                with self.clock.phase("load"):
                    stack.enter_context(job.backbone.resident("vae"))
                self.progress.stage(f"decoding{self.which(clips)}", len(clips))
                for clip, latents_CFhw in zip(clips, latents_BCFhw, strict=True):
                    if any(each.done() and each.exception() for each in putting):
                        break
                    clock = Stopwatch()
                    with clock.phase("decode"):
                        frames = to_frames(job.backbone.decode_video(latents_CFhw[None]), job.backbone.dtype)
                    # Loading and text are of the whole command so far; denoising is the batch's share of a video.
                    seconds = {**self.clock.seconds, **batch_seconds, **clock.seconds}
                    place = self.with_free_place(clip)
                    putting.append(writers.submit(self.put, place, frames, switched, seconds, self.memory.read()))
                    self.progress.advance()
        finally:
            made = [each.result() for each in putting if not each.exception()]
            self.finished += made
            if self.run is not None and made:
                note_finished(self.run, made)
        for each in putting:
            each.result()

    def put(self, clip: Clip, frames: np.ndarray, switched: Switched, seconds: dict[str, float], peak: int) -> Clip:
        """Put a clip's video and receipt in place together, or the video elsewhere where the place refuses now."""
        try:
            self.put_in_place(clip, frames, switched, seconds, peak)
        except EvditError as error:
            if error.exit_code != USAGE:
                raise
            # The place was asked before the work, and refuses now.
            kept = Path(tempfile.mkdtemp(prefix="evdit-")) / clip.path.name
            write_video(kept, frames, self.job.fps, self.told(clip))
            steps = [f"{quoted(kept)} holds the video", *error.next_steps]
            raise EvditError(error.what, where=error.where, next_steps=steps, exit_code=FAILED) from error
        return clip

    def with_free_place(self, clip: Clip) -> Clip:
        """The clip with a place that nothing stands in which is not ours to replace; what was done for it is said."""
        if self.run is None:
            try:
                check_file(clip, self.overwrite)
            except EvditError as error:
                free = beside_taken(clip)
                self.progress.say(f"warning: {error.what}, made by another while this was computed: see {free.path}")
                return free
            return clip
        for place in (clip.path, clip.sidecar) if clip.path.suffix else (clip.sidecar,):
            aside = step_aside(place)
            if aside is not None:
                self.progress.say(f"{place} was a folder: it is now {aside}")
        return clip

    def told(self, clip: Clip) -> dict[str, str]:
        """What the file of a clip says of itself."""
        job = self.job
        said = metadata_of(clip, job.spec, job.backbone.name, job.plan, job.options.dense_steps)
        return said if job.options.metadata else {}

    def put_in_place(
        self,
        clip: Clip,
        frames: np.ndarray,
        switched: Switched,
        seconds: dict[str, float],
        peak: int,
    ) -> None:
        """Write video and receipt, which take their places together."""
        job, clock = self.job, Stopwatch()
        with replacing_together(clip.path, clip.sidecar, drop=is_frame) as (video, sidecar):
            with clock.phase("write"):
                self.encode_or_keep(clip, video, frames, self.told(clip))
            receipt_of(
                clip=clip,
                values=job.values,
                backbone=job.backbone,
                scheduler=job.spec.scheduler,
                timesteps=job.timesteps,
                guidance=job.spec.guidance,
                plan=job.plan,
                switched=switched,
                fallbacks=job.fallbacks,
                warnings=(*job.warnings, *([job.doubts[clip.prompt]] if clip.prompt in job.doubts else [])),
                seconds={**seconds, **clock.seconds},
                peak_bytes=peak,
                output_sha256=path_digest(video),
            ).write(sidecar)

    def encode_or_keep(self, clip: Clip, video: Path, frames: np.ndarray, told: Mapping[str, str]) -> None:
        """Encode a video to `video`; where that fails, keep what was computed as a folder of PNGs and raise."""
        try:
            encode(video, kind_of(clip.path), frames, self.job.fps, told)
        except EvditError as error:
            kept = free_name(clip.path.with_name(f"{clip.path.stem}-frames"))
            write_video(kept, frames, self.job.fps, told)
            raise EvditError(
                f"{error.what}; the frames are kept as PNGs in {kept}",
                where=error.where or str(clip.path),
                next_steps=[
                    *error.next_steps,
                    f"another kind of video: -o NAME{'.gif' if clip.path.suffix == '.mp4' else '.mp4'}",
                ],
                exit_code=error.exit_code,
            ) from error


def joined(texts: Sequence[TextStates]) -> TextStates:
    """Several prompts, each (1, L, C), as one batch, shorter ones padded."""
    length = max(text.states_BLC.shape[1] for text in texts)
    return TextStates(
        torch.cat([padded(text.states_BLC, length) for text in texts]),
        torch.cat([padded(text.mask_BL, length) for text in texts]),
    )


def to_frames(video_BCTHW: Tensor, dtype: torch.dtype) -> np.ndarray:
    """One video in [-1, 1], (1, 3, T, H, W), as uint8 (T, H, W, 3). Raises EvditError where it is not finite."""
    video = video_BCTHW[0].float()
    if not bool(torch.isfinite(video).all()):
        raise EvditError(
            f"the decoded video holds values that are not finite, in {str(dtype).removeprefix('torch.')}",
            next_steps=["--dtype float32"],
            exit_code=FAILED,
        )
    return ((video + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
