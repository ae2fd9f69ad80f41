"""What is read of one clip, whatever its prompt: its scene, motion and flicker, and features for the Frechet distance.

Frames come one at a time; a clip is held as pictures of the world's size. Letters: H, W picture size. No torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.video_file import read_frames, read_video
from vdit_cli.errors import EvditError, quoted
from vdit_cli.evaluation.frechet import SIDE, features
from vdit_cli.evaluation.shape_reading import ObjectReading, Reading, check_video, read_stream
from vdit_cli.evaluation.videos import read_as
from vdit_cli.measures import flicker, motion, psnr, ssim, thumbnail


@dataclass(frozen=True)
class Seen:
    """A clip as read: its scene, number of frames, motion and flicker as `measures` has them, 64 features."""

    reading: Reading
    frames: int
    motion: float
    flicker: float
    features: tuple[float, ...]

    def content(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @staticmethod
    def of(content: Mapping[str, Any]) -> Seen:
        """What `content` was made of, to the last bit. Raises KeyError or TypeError for other content."""
        told = content["reading"]
        objects = tuple(ObjectReading(**{**found, "reasons": tuple(found["reasons"])}) for found in told["objects"])
        return Seen(
            **{**content, "reading": Reading(**{**told, "objects": objects}), "features": tuple(content["features"])}
        )


def see(size: tuple[int, int], frames: Iterable[np.ndarray]) -> Seen:
    """Read a clip whose frames (H, W, 3) uint8 of `size` come one at a time."""
    watched = _Watched()
    reading = read_stream(size, watched.passing(frames))
    return Seen(
        reading,
        len(watched.thumbnails),
        float(np.mean(watched.steps)) if watched.steps else 0.0,
        float(np.mean(watched.bends)) if watched.bends else 0.0,
        tuple(features(watched.thumbnails)),
    )


def see_frames(video: np.ndarray) -> Seen:
    """What `see` reads of a video in memory. Raises: ValueError for anything but uint8 (T, H, W, 3)."""
    check_video(video)
    return see(video.shape[1:3], video)


def see_video(path: Path, digest: str) -> dict[str, Any]:
    """The content of what `see` reads of a video. Raises EvditError for one that is damaged or has another digest."""
    with read_as((path, digest)):
        _, size, frames = read_frames(path)
        return see(size, frames).content()


def compare_frames(*sides: tuple[Path, str]) -> dict[str, float | None]:
    """PSNR in dB (None for equal frames, where it is infinite) and SSIM of two videos, each (path, digest).

    Raises: EvditError for videos of different sizes or lengths, or too small for SSIM, and as `see_video` does.
    """
    with read_as(*sides):
        frames = [read_video(path)[0] for path, _ in sides]
    try:
        closeness = psnr(*frames)
        return {"psnr": closeness if np.isfinite(closeness) else None, "ssim": ssim(*frames)}
    except ValueError as error:
        (a, _), (b, _) = sides
        told = " and ".join(f"{len(video)} frames of {video.shape[2]} x {video.shape[1]}" for video in frames)
        rule = "PSNR and SSIM need as many on both sides, of one size, of 11 x 11 pixels at least"
        steps = [f"make one of the two again as the other is, or move {quoted(b)} out of its folder"]
        raise EvditError(f"{a} and {b} have {told}: {rule}", where=str(b), next_steps=steps) from error


class _Watched:
    """What is measured of frames as they pass by; of them only two are held."""

    def __init__(self) -> None:
        self.before: deque[np.ndarray] = deque(maxlen=2)
        self.thumbnails: list[np.ndarray] = []
        self.steps: list[float] = []
        self.bends: list[float] = []

    def passing(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Each frame, once it is measured: the mean over neighbours of their motion is the motion of all, and so on."""
        for frame in frames:
            self.thumbnails.append(thumbnail(frame, SIDE))
            if self.before:
                self.steps.append(motion(np.stack([self.before[-1], frame])))
            if len(self.before) == 2:
                self.bends.append(flicker(np.stack([*self.before, frame])))
            self.before.append(frame)
            yield frame
