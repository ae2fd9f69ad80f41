"""`evdit prepare-data`: clips and captions to latents and text states on the disk, for training without either model.

Letters: C channels, F latent frames, h, w latent height and width.
"""

from __future__ import annotations

import math
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vdit_cli.artifacts.receipt import Ran, Receipt, this_machine
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.artifacts.video_file import check_encoder, write_video
from vdit_cli.backbones.base import Backbone
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.backbones.sources import size_text
from vdit_cli.data.encoding import Made, Making
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import INDEX, NULL, Clips, open_data, write_index
from vdit_cli.data.sources import SOURCES, ClipSize, check_source
from vdit_cli.errors import FAILED, EvditError, Interrupted
from vdit_cli.knobs import deciding
from vdit_cli.recipe import PrepareDataOptions
from vdit_cli.sampling.announcement import counted, say_options
from vdit_cli.sampling.making import to_frames
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.timing import Progress, Stopwatch

PIXELS_AT_ONCE = {"cuda": 1 << 24}
"""Pixels of all frames that go through the VAE at once, by device; elsewhere more clips at once are no faster."""
PREVIEWS, RECEIPT = "previews", "receipt.json"


@dataclass(frozen=True)
class Prepared:
    """A finished preparation: its folder, its clips, how many captions were cut; clips made now, and in what time."""

    folder: Path
    clips: Clips
    cut: int
    made: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Size of the shards on the disk."""
        return sum((self.folder / shard.path).stat().st_size for shard in self.clips.shards)

    @property
    def clips_per_second(self) -> float | None:
        """Of those made now; None where nothing was left to do."""
        return self.made / self.seconds if self.made else None


@dataclass(frozen=True)
class Study:
    """All that decides the data: a model opened, no weights loaded yet, and what its clips are."""

    options: PrepareDataOptions
    backbone: Backbone
    facts: DataFacts
    size: ClipSize
    latent_shape: tuple[int, int, int, int]

    @property
    def values(self) -> dict[str, Any]:
        """The options that decide the data, the model's own defaults filled in."""
        return {**deciding(self.options), **asdict(self.size), "dtype": dtype_name(self.backbone)}

    def request(self) -> Request:
        """What decides the run."""
        parts = {"vae": self.facts.vae, "text_encoder_digest": self.facts.text_encoder}
        words = {"template": self.facts.template, "negative": self.facts.negative}
        values = {**self.values, **parts, **words}
        return Request("prepare-data", self.options.model, values, origins=dict(self.options.origins))

    def making(self, folder: Path) -> Making:
        """The work, its shards in `folder`. Raises EvditError (exit 2) for a size that the source can't have."""
        size, options, device = self.size, self.options, self.backbone.device
        source = SOURCES[options.source or ""](options, size, device)
        pixels = size.video_frames * size.height * size.width
        batch = options.batch or max(1, PIXELS_AT_ONCE.get(device.type, 0) // pixels)
        return Making(self.backbone, source, folder, options.count, options.shard_clips, batch)

    @property
    def preview_names(self) -> list[str]:
        """The files of the first clips, decoded back."""
        return [f"{number:06d}.mp4" for number in range(min(self.options.previews, self.options.count))]

    def latent_bytes(self, clips: int) -> int:
        """Bytes of the latents of so many clips."""
        return clips * math.prod(self.latent_shape) * self.backbone.dtype.itemsize


def prepare_data(options: PrepareDataOptions, out: Path | None, progress: Progress) -> Prepared:
    """Prepare the clips of a source in the run `out`, go on with it, or read what is there already.

    Without `out` the run is `runs/<date>-prepare-data-<model>`. Raises EvditError with the exit code that fits, and
    Interrupted when the person asked to stop.
    """
    clock = Stopwatch()
    with clock.phase("load"):
        study = prepare(options, progress)
        run = RunDir.start(out, study.request())
    making = study.making(run.path)
    if run.is_done() and set(study.preview_names) <= {path.name for path in (run.path / PREVIEWS).glob("*")}:
        progress.say(f"{run.path} is done already")
        made = [made for shard in making.shards if (made := making.made(shard))]
        return Prepared(run.path, open_data(run.path), sum(each.cut for each in made), 0, 0.0)
    with run:
        return Preparation(study, making, run, clock, progress).carried_out()


def prepare(options: PrepareDataOptions, progress: Progress) -> Study:
    """Open the model, check what was asked for against it, and say what will be done.

    Raises EvditError (exit 2) for what does not fit, 3 for a model whose weights are not here.
    """
    check_source(options)
    if options.previews:
        check_encoder(".mp4")
    backbone = open_backbone(
        find_source(options.model, where=f"--model {options.model}"),
        device=options.device,
        dtype=options.dtype,
        text_encoder=options.text_encoder,
        progress=progress,
        video_frames=options.video_frames,
        height=options.height,
        width=options.width,
    )
    own = backbone.defaults
    size = ClipSize(
        video_frames=options.video_frames or own.video_frames,
        height=options.height or own.height,
        width=options.width or own.width,
        fps=own.fps,
    )
    latent_shape = backbone.latent_shape(size.video_frames, size.height, size.width)
    study = Study(options, backbone, DataFacts.of(backbone), size, latent_shape)
    study.making(Path())
    progress.say(
        f"{backbone.name}: {counted(options.count, 'clip')} of {options.source}, {size.video_frames} x {size.height} x "
        f"{size.width}, {backbone.device} {dtype_name(backbone)}, {size_text(study.latent_bytes(options.count))} of "
        "latents"
    )
    say_options("prepare_data", options, study.values, backbone.name, progress)
    return study


def check_disk(study: Study, folder: Path, clips: int) -> None:
    """Raise EvditError (exit 1) where the latents of so many clips would not fit on the disk."""
    need, free = study.latent_bytes(clips), shutil.disk_usage(folder).free
    if need > free:
        raise EvditError(
            f"{counted(clips, 'clip')} need more than {size_text(need)} in {folder}, and {size_text(free)} are free",
            where=f"-o {folder}",
            next_steps=["another disk with -o", f"--count {max(1, clips * free // (2 * need))} and another folder"],
            exit_code=FAILED,
        )


class Preparation:
    """A run that is being prepared."""

    def __init__(self, study: Study, making: Making, run: RunDir, clock: Stopwatch, progress: Progress) -> None:
        self.study = study
        self.making = making
        self.run = run
        self.clock = clock
        self.progress = progress
        self.left = [shard for shard in making.shards if making.made(shard) is None]
        self.done = 0
        self.start = time.perf_counter()

    def carried_out(self) -> Prepared:
        """Make the shards that are missing or damaged, then index, previews and receipt. Raises Interrupted."""
        study, making = self.study, self.making
        total = sum(len(making.numbers(shard)) for shard in self.left)
        check_disk(study, making.folder, total)
        if total < making.clips:
            self.progress.say(f"{making.clips - total} of {making.clips} clips are done already")
        with PeakMemory(study.backbone.device) as memory, ExitStack() as stack:
            with self.clock.phase("load"):
                for part in ("text", "vae"):
                    stack.enter_context(study.backbone.resident(part))
            if total:
                self.progress.stage("preparing clips", total)
            self.start = time.perf_counter()
            with self.clock.phase("encode"):
                if not making.make(self.left, self.goes_on):
                    raise self.interrupted()
            seconds = time.perf_counter() - self.start
            made = self.finished()
            clips = self.write_index(made)
            with self.clock.phase("previews"):
                self.write_previews(clips)
        cut = sum(each.cut for each in made)
        self.say_cut(cut)
        self.write_receipt(cut, memory.peak)
        files = [name for shard in making.shards for name in (making.path(shard), making.record_path(shard))]
        self.run.add_output("data", INDEX, NULL, RECEIPT, *files)
        return Prepared(making.folder, clips, cut, total, seconds)

    def goes_on(self, clips: int) -> bool:
        """Count clips, with how many a second; whether the person wants more."""
        for _ in range(clips):
            self.done += 1
            self.progress.advance(f"{self.done / (time.perf_counter() - self.start):.2f} clips/s")
        return not self.progress.should_stop()

    def interrupted(self) -> Interrupted:
        """How much stays."""
        making = self.making
        kept = sum(len(making.numbers(shard)) for shard in making.shards if making.made(shard))
        return Interrupted(
            f"stopped: {kept} of {making.clips} clips are on the disk", next_steps=["the same command again"]
        )

    def finished(self) -> list[Made]:
        """Every shard, in order. Raises EvditError (exit 1) for one that was damaged meanwhile."""
        made = [self.making.made(shard) for shard in self.making.shards]
        whole = [each for each in made if each is not None]
        if len(whole) < len(made):
            raise EvditError(
                f"{counted(len(made) - len(whole), 'shard')} of {self.making.folder} changed while others were made",
                next_steps=["the same command again"],
                exit_code=FAILED,
            )
        return whole

    def write_index(self, made: list[Made]) -> Clips:
        """The null states and the index: from then on the folder holds data."""
        study, folder = self.study, self.making.folder
        size = {**asdict(study.size), "latent_shape": list(study.latent_shape)}
        null = self.making.text([study.facts.negative])
        write_index(folder, study.facts, size, null, [each.shard for each in made], study.values)
        return open_data(folder)

    def write_previews(self, clips: Clips) -> None:
        """The first clips, decoded back from their latents, for a person to look at."""
        study, names = self.study, self.study.preview_names
        if not names:
            return
        self.progress.stage("decoding previews", len(names))
        for number, name in enumerate(names):
            with out_of_memory_told("decode the previews", ["--set prepare_data.previews=0"]):
                video = study.backbone.decode_video(clips.latents([number]))
            told = {"prompt": clips.captions[number]}
            frames = to_frames(video, study.backbone.dtype)
            write_video(self.making.folder / PREVIEWS / name, frames, study.size.fps, told, overwrite=True)
            self.progress.advance()
        self.run.add_output(PREVIEWS, PREVIEWS)

    def say_cut(self, cut: int) -> None:
        """Say how many captions were not read whole."""
        if cut:
            self.progress.say(f"warning: {cut_line(cut, self.making.clips)}")

    def write_receipt(self, cut: int, peak: int) -> None:
        """What ran, and the seconds of its phases."""
        backbone = self.study.backbone
        accelerators = (torch.cuda.get_device_name(backbone.device),) if backbone.device.type == "cuda" else ()
        Receipt(
            asked=self.study.options.values(),
            ran=Ran(
                backbone.name,
                device=str(backbone.device),
                dtype=dtype_name(backbone),
                warnings=(cut_line(cut, self.making.clips),) if cut else (),
            ),
            seconds={name: round(spent, 4) for name, spent in self.clock.seconds.items()},
            peak_memory_bytes=peak,
            machine=this_machine(accelerators),
            output=INDEX,
        ).write(self.making.folder / RECEIPT)


def cut_line(cut: int, clips: int) -> str:
    """How many captions the text encoder did not read whole, in words."""
    return f"{cut} of {counted(clips, 'caption')} are longer than the text encoder reads: their ends are left out"


def dtype_name(backbone: Backbone) -> str:
    """The numbers of a model: "bfloat16"."""
    return str(backbone.dtype).removeprefix("torch.")
