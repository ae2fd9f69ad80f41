"""Videos of the shapes world against their prompts: which attributes are right, and how well the object fits.

No torch but for the world's own clips.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import permutations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.digest import content_digest
from vdit_cli.data.shapes_asked import is_of_the_world
from vdit_cli.data.shapes_prompts import ATTRIBUTES, MOTIONS, ObjectWords, parse_prompt
from vdit_cli.errors import EvditError
from vdit_cli.evaluation.frechet import Frechet, distances, world_features
from vdit_cli.evaluation.intervals import Estimate, estimate
from vdit_cli.evaluation.readings import Seen, see_frames, see_video
from vdit_cli.evaluation.shape_reading import ObjectReading, Reading
from vdit_cli.evaluation.videos import Video, distinct, videos_at
from vdit_cli.evaluation.work import Work, workers_for, working
from vdit_cli.timing import Progress, Silent

CHECKS = (*ATTRIBUTES, "all five", "second object", "objects", "everything")
"""What a clip is judged by: `objects` is their number, `second object` has all four of its words right.

`everything` is right where each check is that was made of the clip, whatever its prompt leaves open.
"""
FITS = ("overlap", "jitter", "residual")
MEASURES = (*FITS, "frame motion", "flicker")
"""Finer than right or wrong; the last two are of pixels, and never added up: damage can raise one of them alone."""
FEW = 20
"""Of no more clips the world is rendered only where it is asked for: torch takes longer to load than they to read."""


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
    seen: Seen | None = None
    seed: int | None = None

    @property
    def group(self) -> Hashable:
        """The clips that an interval draws together: those of one prompt."""
        return self.prompt if self.prompt is not None else (self.name, self.seed)

    def measure(self, name: str) -> float | None:
        """One of MEASURES, None where the clip has none."""
        if name in FITS:
            return getattr(self.fit, name) if self.fit else None
        return getattr(self.seen, name.removeprefix("frame "), None)

    def content(self) -> dict[str, Any]:
        """The score as JSON values."""
        return {
            "name": self.name,
            "prompt": self.prompt,
            "seed": self.seed,
            "unreadable": self.reading.unreadable,
            "background": self.reading.background,
            "objects": [asdict(found) for found in self.reading.objects],
            "right": self.right,
            "fit": asdict(self.fit) if self.fit else None,
            **{name: self.measure(name) for name in MEASURES if name not in FITS},
        }


@dataclass(frozen=True)
class Score:
    """The scores of several clips and what they come to."""

    clips: tuple[ClipScore, ...]
    frechet: Frechet | None = None

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Means with their intervals of all `columns` that have a number."""
        return estimate(columns(self.clips), [clip.group for clip in self.clips])

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
        """Means of MEASURES over the clips that have one; None where none has."""
        return {name: self.estimates[name].value if name in self.estimates else None for name in MEASURES}

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
            "estimates": {name: each.content() for name, each in self.estimates.items()},
            "frechet": self.frechet.content() if self.frechet else None,
            "videos": [clip.content() for clip in self.clips],
        }


def columns(clips: Sequence[ClipScore]) -> dict[str, list[float | None]]:
    """What is averaged: CHECKS (1 where right), motion by its class as "motion: bouncing", MEASURES, unreadable."""
    found: dict[str, list[float | None]] = {
        check: [_as_number(clip.right.get(check)) for clip in clips] for check in CHECKS
    }
    asked = [parse_prompt(clip.prompt or "").objects for clip in clips]
    motions = [objects[0].motion if objects else None for objects in asked]
    for motion in MOTIONS:
        found[f"motion: {motion}"] = [
            right if motion == wanted else None for right, wanted in zip(found["motion"], motions, strict=True)
        ]
    found |= {name: [clip.measure(name) for clip in clips] for name in MEASURES}
    return found | {"unreadable": [float(clip.reading.unreadable is not None) for clip in clips]}


def score(
    paths: Sequence[Path | str],
    prompts: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    kept: Path | None = None,
    workers: int | None = None,
    world: bool | None = None,
) -> Score:
    """Read video files, and every video of folders, and judge each by its prompt.

    Without `prompts` (one a video, in order; of a folder in the order of names) a video's own is taken: `asked.prompt`
    of the receipt beside it, or the prompt in its metadata; a video without any is only read. What is there twice
    counts once. What is read is kept in the file `kept`; `workers` defaults to `workers_for`, and `world`, the Frechet
    distances, to more than FEW clips.
    Raises: EvditError for a path that is missing, no video or damaged, a folder without videos, or another number of
    prompts than videos; Interrupted when the person asked to stop before the last video.
    """
    progress = progress or Silent()
    videos = videos_at(paths, progress)
    if prompts is not None:
        if len(prompts) != len(videos):
            raise EvditError(f"{len(prompts)} prompts don't fit {len(videos)} videos: each video needs its own")
        videos = [replace(video, prompt=prompt) for video, prompt in zip(videos, prompts, strict=True)]
    videos = distinct(videos, progress)
    with working(kept, workers or workers_for(len(videos)), progress) as work:
        return score_videos(videos, work, world)


def score_videos(videos: Sequence[Video], work: Work, world: bool | None = None) -> Score:
    """Read and judge `videos`; with `world` (None: for more than FEW) the Frechet distances too."""
    keys = [f"video {video.digest}" for video in videos]
    calls = {key: (video.path, video.digest) for key, video in zip(keys, videos, strict=True)}
    found = work.results("reading", see_video, calls)
    clips = [
        replace(judge(seen.reading, video.prompt, video.path.name), seen=seen, seed=video.seed)
        for video, seen in ((video, Seen.of(found[key])) for key, video in zip(keys, videos, strict=True))
    ]
    is_wanted = len(clips) > FEW if world is None else world
    return Score(tuple(clips), _frechet(clips, work) if is_wanted else None)


def score_tensors(videos: Iterable[np.ndarray], prompts: Sequence[str], workers: int = 1) -> Score:
    """Judge videos in memory, each uint8 (T, H, W, 3), by their prompts; with `workers` > 1 in as many processes.

    Raises: ValueError for another array, or another number of prompts than videos.
    """
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            clips = list(pool.map(see_frames, videos, chunksize=8))
    else:
        clips = [see_frames(video) for video in videos]
    return Score(
        tuple(
            replace(judge(seen.reading, prompt, f"{number:04d}"), seen=seen)
            for number, (seen, prompt) in enumerate(zip(clips, prompts, strict=True))
        )
    )


def judge(reading: Reading, prompt: str | None, name: str = "") -> ClipScore:
    """Compare a reading with a prompt; what the prompt leaves open is not judged.

    The prompt's first object is compared with the object of its colour, or else with the largest one; so is a second.
    Where one of two names no colour, the two objects are compared that agree best.
    """
    asked = parse_prompt(prompt or "")
    right: dict[str, bool] = {}
    first = asked.objects[0] if asked.objects else ObjectWords()
    shown, other = _compared(reading, asked.objects)
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
        right["second object"] = all(_agreements(asked.objects[1], other))
    if right:
        right["everything"] = all(right.values())
    return ClipScore(name, prompt, reading, right, shown, _fit(shown, first.shape))


def _compared(reading: Reading, asked: Sequence[ObjectWords]) -> tuple[ObjectReading | None, ObjectReading | None]:
    """The objects that the first and the second of a prompt are compared with."""
    first, second = (*asked, ObjectWords(), ObjectWords())[:2]
    if len(asked) < 2 or (first.colour and second.colour):
        return reading.object_like(first.colour), reading.object_like(second.colour)
    if len(reading.objects) < 2:
        return reading.object_like(first.colour), None
    return max(
        permutations(reading.objects, 2),
        key=lambda pair: sum(_agreements(first, pair[0])) + sum(_agreements(second, pair[1])),
    )


def _agreements(words: ObjectWords, shown: ObjectReading | None) -> list[bool]:
    """Of each word for an object, whether it is so."""
    return [getattr(shown, name, None) == word for name, word in asdict(words).items() if word is not None]


def _fit(shown: ObjectReading | None, asked_shape: str | None) -> Fit | None:
    if shown is None:
        return None
    shape = asked_shape or max(shown.overlap, key=lambda name: shown.overlap[name])
    return Fit(shown.overlap[shape], shown.jitter[shape], shown.residual)


def _as_number(right: bool | None) -> float | None:
    return None if right is None else float(right)


def _frechet(clips: Sequence[ClipScore], work: Work) -> Frechet | None:
    """The distances over the clips whose prompts are of the world; how many are not is said."""
    judged = [clip for clip in clips if clip.prompt and is_of_the_world(clip.prompt)]
    if len(judged) < len(clips):
        work.progress.say(f"Frechet distance: {len(clips) - len(judged)} videos without a prompt of the world left out")
    if len(judged) < 2:
        work.progress.say("Frechet distance: left out, it needs two videos of prompts of the world")
        return None
    calls, keys, times = {}, [], Counter[str]()
    for clip in judged:
        assert clip.prompt is not None and clip.seen is not None
        number = times[clip.prompt] if clip.seed is None else clip.seed % 2**64
        times[clip.prompt] += 1
        keys.append(f"world {content_digest([clip.prompt, number, clip.seen.frames])}")
        calls[keys[-1]] = (clip.prompt, number, clip.seen.frames)
    worlds = work.results("rendering the world", world_features, calls)
    return distances([clip.seen.features for clip in judged if clip.seen], [worlds[key] for key in keys])
