"""Reads a clip of the shapes world back into words, with how well each one fits; what does not fit is not guessed.

Letters: T frames, H, W picture size. No torch: numpy and scipy only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from vdit_cli.data.shapes_scenes import SIDE
from vdit_cli.evaluation.outlines import Outline, Unreadable, find_background, find_outlines
from vdit_cli.evaluation.templates import overlaps, radius_of
from vdit_cli.evaluation.tracks import read_track

LEAST_OVERLAP = 0.7
"""Below this mean IoU with every template an outline has no shape; below GARBLED the whole clip is unreadable."""
GARBLED = 0.5
HIDDEN = 0.08
"""A frame whose IoU is this much below that of the frames where nothing touches the outline is partly hidden."""
SMALL_LARGE = 20.0
RADIUS_RANGE = (10.5, 36.0)
MOST_OBJECTS = 3
MOST_FRAMES = 1000
"""A clip of the world has 29. What lasts is found in all of them at once, which takes half a megabyte a frame."""


@dataclass(frozen=True)
class ObjectReading:
    """One object as read: None for what is not clear, with `reasons`; IoU with each shape's template and its jitter.

    `overlap` is the mean over frames, `jitter` the standard deviation; `residual` is the track's distance from its
    motion class, in pixels of a 128 x 128 picture, and so is `radius`.
    """

    size: str | None
    colour: str
    shape: str | None
    motion: str | None
    radius: float
    overlap: dict[str, float] = field(repr=False)
    jitter: dict[str, float] = field(repr=False)
    residual: float | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A clip as read: background and objects, largest first; or neither, with the reason in `unreadable`."""

    background: str | None = None
    objects: tuple[ObjectReading, ...] = ()
    unreadable: str | None = None

    def object_like(self, colour: str | None) -> ObjectReading | None:
        """The object of this colour, the largest one where none is, None where there is no object at all."""
        return next((found for found in self.objects if found.colour == colour), next(iter(self.objects), None))


def read_attributes(frames: np.ndarray) -> Reading:
    """What a video (T, H, W, 3) uint8 shows: background, and size, colour, shape and motion of each object.

    Raises: ValueError for anything but a uint8 video in RGB.
    """
    check_video(frames)
    return read_stream(frames.shape[1:3], frames)


def check_video(frames: np.ndarray) -> None:
    """Raises: ValueError for anything but a uint8 video (T, H, W, 3) that shows something."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"a video is uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")


def read_stream(size: tuple[int, int], frames: Iterable[np.ndarray]) -> Reading:
    """What a video shows whose frames (H, W, 3) uint8 of `size` (H, W) come one at a time.

    Each is held only as large as a picture of the world is, and no more than MOST_FRAMES of them are.
    """
    try:
        video_CThw = _at_world_size(size, frames)
        background, picture = find_background(video_CThw)
        objects = tuple(_read_object(outline) for outline in find_outlines(video_CThw, picture))
        _check_whole(objects)
    except Unreadable as reason:
        return Reading(unreadable=str(reason))
    return Reading(background, objects)


def _at_world_size(size: tuple[int, int], frames: Iterable[np.ndarray]) -> np.ndarray:
    """The video as (C, T, 128, 128). Raises Unreadable when it is not square, or too long."""
    height, width = size
    pictures: list[np.ndarray] = []
    for number, frame in enumerate(frames):
        if number == MOST_FRAMES:
            raise Unreadable(f"a clip of the world is short: this one has more than {MOST_FRAMES} frames")
        if height == width:
            pictures.append(_picture_at_world_size(frame))
    if height != width:  # after the last frame, as a damaged file is an error and not an unreadable clip
        raise Unreadable(f"a picture of the world is square, not {width}x{height}")
    return np.stack(pictures, axis=1)


def _picture_at_world_size(frame: np.ndarray) -> np.ndarray:
    """A frame (H, H, 3) as (C, 128, 128)."""
    picture = frame.transpose(2, 0, 1).copy()
    if len(frame) != SIDE:
        zoom = SIDE / len(frame)
        picture = ndimage.zoom(picture, (1, zoom, zoom), order=1, grid_mode=True, mode="nearest")
    return picture


def _read_object(outline: Outline) -> ObjectReading:
    found = overlaps(outline.alpha[outline.seen], outline.area[outline.seen], outline.centre[outline.seen])
    clear = outline.clear[outline.seen]
    overlap = {shape: float(values[clear].mean()) for shape, values in found.items()}
    jitter = {shape: float(values[clear].std()) for shape, values in found.items()}
    best = max(overlap, key=lambda shape: overlap[shape])
    whole = found[best] >= np.median(found[best][clear]) - HIDDEN
    times = np.flatnonzero(outline.seen)[whole]
    track = read_track(times, outline.centre[times], radius_of(best, outline.area[times]), len(outline.area))
    reasons = [track.reason] if track.reason else []
    size: str | None = "small" if track.radius < SMALL_LARGE else "large"
    shape: str | None = best
    if not RADIUS_RANGE[0] <= track.radius <= RADIUS_RANGE[1]:
        reasons.append(f"a radius of {track.radius:.0f} px is neither small nor large")
        size = None
    if overlap[best] < LEAST_OVERLAP:
        reasons.append(f"no shape fits the {outline.colour} part: {overlap[best]:.2f} IoU with a {best}")
        size, shape = None if overlap[best] < GARBLED else size, None
    return ObjectReading(
        size, outline.colour, shape, track.motion, track.radius, overlap, jitter, track.residual, tuple(reasons)
    )


def _check_whole(objects: tuple[ObjectReading, ...]) -> None:
    """Raises Unreadable for a clip in pieces, or whose main object is clear in too little to trust the rest."""
    main = objects[0]
    garbled = [found for found in objects if max(found.overlap.values()) < GARBLED]
    in_pieces = len({found.colour for found in objects}) < len(objects) or len(objects) > 2
    if len(objects) > MOST_OBJECTS or (garbled and in_pieces):
        raise Unreadable(f"{len(objects)} pieces are not a scene of one or two objects")
    unclear = sum(found is None for found in (main.size, main.shape, main.motion))
    if main in garbled or unclear >= 2:
        raise Unreadable("; ".join(main.reasons))
