"""Videos as pictures: animated GIF and WebP, and folders of PNGs, by Pillow.

T frames, H and W pixels; a video is a uint8 array (T, H, W, 3), RGB. The picture formats keep milliseconds and drop
repeated frames, so the rate is kept beside the metadata in the comment and repeats are put back on reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from vdit_cli.errors import EvditError

FRAME_NAME = re.compile(r"\d{5,}\.png")
IMAGE_DESCRIPTION = 0x010E
"""The Exif tag that holds a WebP's comment."""
FPS_KEY, COUNT_KEY = "evdit_fps", "evdit_frames"
FOLDER_FPS = 24.0
"""The rate of a folder of PNGs that another program wrote and that tells none."""


def write_gif(path: Path, frames: np.ndarray, fps: float, comment: Mapping[str, str]) -> None:
    """An endless GIF, each frame with a palette of its own."""
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    times = durations(len(frames), fps, 10)
    text = comment_text(comment, fps, len(frames)).encode("utf-8")
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0, comment=text)


def write_webp(path: Path, frames: np.ndarray, fps: float, comment: Mapping[str, str]) -> None:
    """An endless WebP of quality 92."""
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = comment_text(comment, fps, len(frames))
    pictures = [Image.fromarray(frame) for frame in frames]
    times = durations(len(frames), fps, 1)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0, exif=exif, quality=92)


def write_folder(path: Path, frames: np.ndarray, fps: float, comment: Mapping[str, str]) -> None:
    """A folder of 00000.png, 00001.png, ...; the comment stands in the first one."""
    path.mkdir()
    for index, frame in enumerate(frames):
        info = PngInfo()
        if index == 0:
            info.add_itxt("Comment", comment_text(comment, fps, len(frames)))
        Image.fromarray(frame).save(path / f"{index:05d}.png", pnginfo=info)


def durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds of each of `count` frames, multiples of `unit` whose sum stays near the true time."""
    ends = [max(round(1000 * index / fps / unit), index) * unit for index in range(count + 1)]
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


def comment_text(comment: Mapping[str, str], fps: float, count: int) -> str:
    """The comment as JSON, in ASCII for Exif's sake, with the rate and the number of frames first."""
    return json.dumps({FPS_KEY: f"{fps:.6g}", COUNT_KEY: str(count), **comment})


def read_animation(path: Path) -> tuple[np.ndarray, float]:
    """(frames, frames a second) of a GIF or WebP. Raises EvditError for a damaged one."""
    frames, lasting = [], []
    try:
        with Image.open(path) as animation:
            for picture in ImageSequence.Iterator(animation):
                frames.append(np.asarray(picture.convert("RGB")))
                lasting.append(max(float(picture.info.get("duration", 0)), 1.0))
    except (OSError, SyntaxError, ValueError) as error:
        raise EvditError(f"{path} can't be read as an animation: {error}", where=str(path)) from error
    told = told_rate(read_comment(path))
    if told is None:
        return np.stack(frames), 1000 * len(frames) / sum(lasting)
    fps, count = told
    ends = np.rint(np.cumsum(lasting) * fps / 1000).astype(int)
    ends[-1] = count
    repeats = np.maximum(np.diff(ends, prepend=0), 1)
    return np.repeat(np.stack(frames), repeats, axis=0), fps


def read_folder(path: Path) -> tuple[np.ndarray, float]:
    """(frames, frames a second) of a folder of PNGs by name. Raises EvditError for none or unequal ones."""
    files = sorted(path.glob("*.png"))
    if not files:
        raise EvditError(f"{path} holds no PNGs", where=str(path))
    frames = []
    for file in files:
        try:
            with Image.open(file) as picture:
                frames.append(np.asarray(picture.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:
            raise EvditError(f"{file} can't be read as a picture: {error}", where=str(file)) from error
        if frames[-1].shape != frames[0].shape:
            raise EvditError(f"{file.name} is not as large as {files[0].name}", where=str(file))
    told = told_rate(read_comment(path))
    return np.stack(frames), told[0] if told else FOLDER_FPS


def read_comment(path: Path) -> str:
    """The comment of a GIF, a WebP or the first PNG of a folder, "" where there is none. Raises EvditError."""
    file = min(path.glob("*.png"), default=path) if path.is_dir() else path
    try:
        with Image.open(file) as picture:
            text = (
                picture.info.get("comment") or picture.info.get("Comment") or picture.getexif().get(IMAGE_DESCRIPTION)
            )
    except (OSError, UnidentifiedImageError) as error:
        raise EvditError(f"{file} can't be read as a picture: {error}", where=str(file)) from error
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text or "")


def told_rate(comment: str) -> tuple[float, int] | None:
    """The rate and the number of frames that a comment of ours tells, else None."""
    try:
        content = json.loads(comment)
        return float(content[FPS_KEY]), int(content[COUNT_KEY])
    except (ValueError, KeyError, TypeError):
        return None


def holds_only_frames(folder: Path) -> bool:
    """Whether everything in a folder is a numbered PNG; hidden files don't count."""
    return all(is_frame(file) or file.name.startswith(".") for file in folder.iterdir())


def is_frame(file: Path) -> bool:
    """Whether a file has the name of a frame."""
    return FRAME_NAME.fullmatch(file.name) is not None
