"""What a student makes while it learns: videos of fixed prompts and seeds, a contact sheet, and numbers to watch.

previews/teacher.safetensors  teacher.json  teacher.png  looks.jsonl  step-000500.png  step-000500/0.mp4 1.mp4 ...
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vdit_cli.artifacts.atomic import replacing, write_json
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.artifacts.tensors import Stored, opened
from vdit_cli.artifacts.video_file import write_video
from vdit_cli.backbones.base import Backbone, TextStates
from vdit_cli.backbones.tensor_file import write_tensors
from vdit_cli.data.shards import Clips
from vdit_cli.distillation.metrics import drop_after
from vdit_cli.distillation.student_networks import Pair
from vdit_cli.distillation.watch import Look
from vdit_cli.errors import EvditError
from vdit_cli.reader import Index, kept, read_lines
from vdit_cli.sampling.making import to_frames
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.sample import SampleSpec, sample
from vdit_cli.timing import Silent

SCHEMA = "evdit.look/1"
LOOKS, TEACHER = "looks.jsonl", "teacher"
SHEET_FRAMES = 6
"""Frames of each video on a contact sheet, evenly apart."""


@dataclass(frozen=True)
class KeyedLook(Look):
    """A look as it is noted, with the key of what decided it."""

    key: str

    def under(self, key: str) -> Look | None:
        """The look, None where it was noted under another key."""
        return Look(self.sharpness, self.motion, self.gap) if self.key == key else None


@dataclass(frozen=True)
class LookLine(KeyedLook):
    """A line of looks.jsonl: the student's look at an iteration."""

    iteration: Index


@dataclass(frozen=True)
class Previews:
    """The first `count` captions of the data with seeds `seed`, `seed` + 1, ...; everything goes to `folder`.

    `beside` is whatever else decides the videos: the precision, the plan's digest. A network `in_shards` is only called
    whole, so its texts are not prepared beforehand.
    """

    pair: Pair
    clips: Clips
    folder: Path
    count: int
    seed: int
    student_spec: SampleSpec
    teacher_spec: SampleSpec
    precision: Callable[[], AbstractContextManager[None]]
    beside: tuple[str | None, ...] = ()
    in_shards: bool = False

    @cached_property
    def key(self) -> str:
        """Digest of what decides the videos but for the student's weights: only looks of one key are compared."""
        specs = [asdict(self.student_spec), asdict(self.teacher_spec)]
        shards = [(shard.sha256, shard.captions) for shard in self.clips.shards]
        teacher = self.pair.teacher.weights_digest
        return content_digest([self.count, self.seed, specs, shards, teacher, *self.beside])

    def teacher_look(self) -> Look | None:
        """The look of the teacher's videos, None before `keep_teacher` and where those are of another key."""
        noted = kept(KeyedLook, self.folder / f"{TEACHER}.json", "look", SCHEMA)
        return noted.under(self.key) if noted and self.has_teacher_latents() else None

    def sampled_teacher(self) -> Tensor:
        """Latents of the teacher's videos. Of a network in shards all ranks must ask, for the student's too."""
        with self.pair.teaching():
            return self._sampled(self.pair.teacher, self.teacher_spec)

    def sampled_student(self) -> Tensor:
        """Latents of the student's videos of the same prompts and noise, as it is now."""
        return self._sampled(self.pair.student, self.student_spec)

    def keep_teacher(self, latents_BCFhw: Tensor) -> Look:
        """Write the teacher's videos and latents, and note their look; its gap to itself is 0."""
        file = self.folder / f"{TEACHER}.json"
        look = Look.of(self._shown(latents_BCFhw, TEACHER), 0.0)
        with replacing(file.with_suffix(".safetensors")) as beside:
            write_tensors({"latents": latents_BCFhw.cpu().contiguous()}, beside)
        write_json(file, {"schema": SCHEMA, "key": self.key, **asdict(look)})
        return look

    def has_teacher_latents(self) -> bool:
        """Whether the teacher's latents of the previews are there and whole."""
        try:
            self._teacher_latents()
        except EvditError:
            return False
        return True

    def keep(self, iteration: int, latents_BCFhw: Tensor) -> Look:
        """Write the student's videos, and note their look beside the teacher's latents, which are there."""
        wanted = self._teacher_latents()
        gap = float((latents_BCFhw.cpu() - wanted).double().square().mean().sqrt())  # a line of JSON has no infinity
        look = Look.of(self._shown(latents_BCFhw, f"step-{iteration:06d}"), gap)
        with open(self.folder / LOOKS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": iteration, "key": self.key, **asdict(look)}) + "\n")
        return look

    def noted(self) -> dict[int, Look]:
        """The looks noted so far under this key, by iteration; a line cut short by a killed process is left out."""
        lines = [LookLine(**line) for line in read_lines(LookLine, self.folder / LOOKS, "log")]
        return {line.iteration: look for line in lines if (look := line.under(self.key)) is not None}

    def drop_after(self, iteration: int) -> None:
        """Forget the looks after `iteration`: that part of the training is about to be done again."""
        drop_after(self.folder / LOOKS, LookLine, iteration)

    def _teacher_latents(self) -> Tensor:
        """The teacher's latents of the previews. Raises EvditError where they are not whole."""
        wanted = {"latents": Stored("F32", (self.count, *self.clips.latent_shape))}
        with opened(self.folder / f"{TEACHER}.safetensors", "pt", wanted=wanted) as file:
            return file.get_tensor("latents")

    def _sampled(self, backbone: Backbone, spec: SampleSpec) -> Tensor:
        states, mask = self.clips.text(range(self.count))
        text, null = TextStates(states, mask), TextStates(*self.clips.null_text())
        generators = generators_for(self.seed + i for i in range(self.count))
        with self.precision():
            null_text = null if spec.guided else None
            return sample(backbone, spec, text, null_text, generators, Silent(), prepare=not self.in_shards)

    def _decoded(self, latents_BCFhw: Tensor) -> list[np.ndarray]:
        teacher = self.pair.teacher
        with teacher.resident("vae"), torch.no_grad():
            return [to_frames(teacher.decode_video(each[None]), teacher.dtype) for each in latents_BCFhw]

    def _shown(self, latents_BCFhw: Tensor, name: str) -> list[np.ndarray]:
        """Write the videos to `folder/name/` and their contact sheet beside it; returns them."""
        videos = self._decoded(latents_BCFhw)
        for number, video in enumerate(videos):
            told = {"prompt": self.clips.captions[number], "seed": str(self.seed + number)}
            write_video(self.folder / name / f"{number}.mp4", video, self.clips.size["fps"], told, overwrite=True)
        write_sheet(self.folder / f"{name}.png", videos)
        return videos


def write_sheet(path: Path, videos: list[np.ndarray]) -> None:
    """A contact sheet: a row a video, up to SHEET_FRAMES of its frames from the first to the last."""
    rows = []
    for video in videos:
        picks = np.linspace(0, len(video) - 1, min(SHEET_FRAMES, len(video))).round().astype(int)
        rows.append(np.concatenate([video[pick] for pick in picks], axis=1))
    with replacing(path) as beside:
        Image.fromarray(np.concatenate(rows, axis=0)).save(beside, format="PNG")
