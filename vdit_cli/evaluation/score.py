"""Videos of the shapes world against their prompts: which attributes are right, and how well the object fits.

Letters: T frames, H, W picture size. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.stills import holds_only_frames
from vdit_cli.artifacts.video_file import READ_BY_FFMPEG, existing, read_frames, read_metadata
from vdit_cli.data.shapes_prompts import ATTRIBUTES, ObjectWords, parse_prompt
from vdit_cli.errors import EvditError, Interrupted, quoted
from vdit_cli.evaluation.shape_reading import ObjectReading, Reading, read_attributes, read_stream
from vdit_cli.timing import Progress, Silent

VIDEO_SUFFIXES = (*READ_BY_FFMPEG, ".gif", ".webp")
CHECKS = (*ATTRIBUTES, "all five", "second object", "objects")
"""What a clip is judged by; `objects` is their number, `second object` has all four of its words right."""


@dataclass(frozen=True)
class Fit:
    """How well the first object keeps to its words: IoU with the asked shape's template, its jitter, track residual.

    `overlap` is a mean and `jitter` a standard deviation over frames; `residual` is in pixels of a 128 x 128 picture.
    """

    overlap: float
    jitter: float
    residual: float | None


@dataclass(frozen=True)
class ClipScore:
    """One clip: what it shows, and of what its prompt asks for (CHECKS), what is right.

    `right` is empty without a prompt; `shown` is the object that is compared with the prompt's first.
    """

    name: str
    prompt: str | None
    reading: Reading
    right: dict[str, bool]
    shown: ObjectReading | None
    fit: Fit | None

    def content(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {
            "name": self.name,
            "prompt": self.prompt,
            "unreadable": self.reading.unreadable,
            "background": self.reading.background,
            "objects": [asdict(found) for found in self.reading.objects],
            "right": self.right,
            "fit": asdict(self.fit) if self.fit else None,
        }


@dataclass(frozen=True)
class Score:
    """The scores of several clips and what they come to."""

    clips: tuple[ClipScore, ...]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """For each check that was made at all, in the order of CHECKS: how many clips are right, of how many."""
        judged = {check: [clip.right[check] for clip in self.clips if check in clip.right] for check in CHECKS}
        return {check: (sum(right), len(right)) for check, right in judged.items() if right}

    @property
    def accuracy(self) -> dict[str, float]:
        """The share of right clips for each check that was made."""
        return {check: right / of for check, (right, of) in self.counts.items()}

    @property
    def measures(self) -> dict[str, float | None]:
        """Means of the fits over the clips that have one; None where none has."""
        fits = [clip.fit for clip in self.clips if clip.fit]
        columns = {
            name: [value for fit in fits if (value := getattr(fit, name)) is not None]
            for name in ("overlap", "jitter", "residual")
        }
        return {name: float(np.mean(values)) if values else None for name, values in columns.items()}

    @property
    def unreadable(self) -> int:
        """How many clips show no scene of the world."""
        return sum(clip.reading.unreadable is not None for clip in self.clips)

    def content(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {
            "clips": len(self.clips),
            "unreadable": self.unreadable,
            "accuracy": {
                check: {"right": right, "of": of, "share": right / of} for check, (right, of) in self.counts.items()
            },
            "measures": self.measures,
            "videos": [clip.content() for clip in self.clips],
        }


def score(paths: Sequence[Path | str], prompts: Sequence[str] | None = None, progress: Progress | None = None) -> Score:
    """Read video files, and every video of folders, and judge each by its prompt.

    Without `prompts` (one a video, in order; of a folder in the order of names) a video's own is taken: `asked.prompt`
    of the receipt beside it, or the prompt in its metadata; a video without any is only read.
    Raises: EvditError for a path that is missing, no video or damaged, a folder without videos, or another number of
    prompts than videos; Interrupted when the person asked to stop before the last video.
    """
    progress = progress or Silent()
    videos = [video for path in paths for video in find_videos(Path(path))]
    if prompts is not None and len(prompts) != len(videos):
        raise EvditError(f"{len(prompts)} prompts don't fit {len(videos)} videos: each video needs its own")
    progress.stage("reading", len(videos))
    clips = []
    for number, video in enumerate(videos):
        prompt = prompts[number] if prompts is not None else find_prompt(video, progress)
        _, size, frames = read_frames(video)
        clips.append(judge(read_stream(size, frames), prompt, video.name))
        progress.advance()
        if progress.should_stop() and len(clips) < len(videos):
            raise Interrupted(f"stopped: {len(clips)} of {len(videos)} videos were read, which is no score yet")
    return Score(tuple(clips))


def score_tensors(videos: Iterable[np.ndarray], prompts: Sequence[str], workers: int = 1) -> Score:
    """Judge videos in memory, each uint8 (T, H, W, 3), by their prompts; with `workers` > 1 in as many processes.

    Raises: ValueError for another array, or another number of prompts than videos.
    """
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            readings = list(pool.map(read_attributes, videos, chunksize=8))
    else:
        readings = [read_attributes(video) for video in videos]
    return Score(
        tuple(
            judge(reading, prompt, f"{number:04d}")
            for number, (reading, prompt) in enumerate(zip(readings, prompts, strict=True))
        )
    )


def judge(reading: Reading, prompt: str | None, name: str = "") -> ClipScore:
    """Compare a reading with a prompt; what the prompt leaves open is not judged.

    The prompt's first object is compared with the object of its colour, or else with the largest one; so is a second.
    """
    asked = parse_prompt(prompt or "")
    right: dict[str, bool] = {}
    first = asked.objects[0] if asked.objects else ObjectWords()
    shown = reading.object_like(first.colour)
    for attribute in ATTRIBUTES:
        wanted = asked.background if attribute == "background" else getattr(first, attribute)
        found = reading.background if attribute == "background" else getattr(shown, attribute, None)
        if wanted is not None:
            right[attribute] = found == wanted
    if all(attribute in right for attribute in ATTRIBUTES):
        right["all five"] = all(right.values())
    if asked.objects:
        right["objects"] = len(reading.objects) == len(asked.objects)
    if len(asked.objects) > 1:
        second = asked.objects[1]
        other = reading.object_like(second.colour)
        wanted_words = {name: word for name, word in asdict(second).items() if word is not None}
        right["second object"] = all(getattr(other, name, None) == word for name, word in wanted_words.items())
    return ClipScore(name, prompt, reading, right, shown, _fit(shown, first.shape))


def find_videos(path: Path) -> list[Path]:
    """The video at `path`, or those in a folder by name. Raises EvditError where there is none."""
    if not path.is_dir() or _is_frames(path):
        return [existing(path)]
    found = sorted(
        inside
        for inside in path.iterdir()
        if not inside.name.startswith(".")
        and ((inside.is_file() and inside.suffix.lower() in VIDEO_SUFFIXES) or (inside.is_dir() and _is_frames(inside)))
    )
    if not found:
        raise EvditError(
            f"{path} holds no video: a video ends in {', '.join(VIDEO_SUFFIXES)}, or is a folder of PNGs",
            where=str(path),
            next_steps=[
                f'evdit generate "a small blue ring bouncing over a beige background" -o {quoted(path / "ring.mp4")}'
            ],
        )
    return found


def find_prompt(video: Path, progress: Progress) -> str | None:
    """The prompt that a video was made from: of the receipt beside it, or else of its metadata; None without any.

    A receipt that holds the digest of another video is not asked, which is said.
    """
    sidecar = video.with_name(video.stem + ".json")
    if sidecar.is_file():
        try:
            content = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EvditError(f"{sidecar} is not JSON: {error}", where=str(sidecar)) from error
        told = content if isinstance(content, dict) else {}
        asked, digest = told.get("asked"), told.get("output_sha256")
        prompt = asked.get("prompt") if isinstance(asked, dict) else None
        is_own = digest is None or digest == path_digest(video)
        if isinstance(prompt, str) and is_own:
            return prompt
        if not is_own:
            progress.say(f"{sidecar} is the receipt of another video: what {video.name} tells itself is taken")
    return read_metadata(video).get("prompt")


def _is_frames(folder: Path) -> bool:
    return any(folder.iterdir()) and holds_only_frames(folder)


def _fit(shown: ObjectReading | None, asked_shape: str | None) -> Fit | None:
    if shown is None:
        return None
    shape = asked_shape or max(shown.overlap, key=lambda name: shown.overlap[name])
    return Fit(shown.overlap[shape], shown.jitter[shape], shown.residual)
