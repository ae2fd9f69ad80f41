"""Videos as pictures: animated GIF and WebP, and folders of PNGs, by Pillow.

T frames, H and W pixels; a video is a uint8 array (T, H, W, 3), RGB. The picture formats keep milliseconds (a GIF
hundredths of a second) and drop repeated frames, so the rate is kept beside the metadata in the comment and repeats
are put back on reading. imageio would hand the pictures on to Pillow, but not a WebP's or a PNG's comment.
"""

from __future__ import annotations

import json
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from vdit_cli.artifacts.frames import Frames
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.knobs import to_fraction

FRAME_NAME = re.compile(r"\d{5,}\.png")
IMAGE_DESCRIPTION = 0x010E
"""The Exif tag that holds a WebP's comment."""
FPS_KEY, COUNT_KEY = "evdit_fps", "evdit_frames"
FOLDER_FPS = Fraction(24)
"""The rate of a folder of PNGs that another program wrote and that tells none."""
MOST_REPEATS = 10_000
"""A WebP of equal frames is one picture without a time: it is taken at its word for so many frames."""
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, *BOMBS)
"""What Pillow raises for damaged pictures."""
Told = tuple[Fraction, tuple[int, int], Iterator[np.ndarray]]
"""A video that is read: frames a second, pixels down and across, the frames one at a time."""


def write_gif(path: Path, frames: np.ndarray | Frames, fps: Fraction, comment: Mapping[str, str]) -> None:
    """An endless GIF, each frame with a palette of its own."""
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    times = durations(len(frames), fps, 10)
    text = comment_text(comment, fps, len(frames)).encode("utf-8")
    with failures_told("GIF", frames), path.open("wb") as file:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0, comment=text)


def write_webp(path: Path, frames: np.ndarray | Frames, fps: Fraction, comment: Mapping[str, str]) -> None:
    """An endless WebP of quality 92."""
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = comment_text(comment, fps, len(frames))
    pictures = [Image.fromarray(frame) for frame in frames]
    times = durations(len(frames), fps, 1)
    told = {"duration": times, "loop": 0, "exif": exif, "quality": 92}
    with failures_told("WebP", frames), path.open("wb") as file:
        pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], **told)


def write_folder(path: Path, frames: np.ndarray | Frames, fps: Fraction, comment: Mapping[str, str]) -> None:
    """A folder of 00000.png, 00001.png, ...; the comment stands in the first one."""
    path.mkdir()
    for index, frame in enumerate(frames):
        info = PngInfo()
        if index == 0:
            info.add_itxt("Comment", comment_text(comment, fps, len(frames)))
        Image.fromarray(frame).save(path / f"{index:05d}.png", pnginfo=info)


@contextmanager
def failures_told(kind: str, frames: np.ndarray | Frames) -> Iterator[None]:
    """Pillow's failures as EvditError (exit 1); what the operating system says, such as a full disk, stays OSError."""
    try:
        yield
    except (OSError, ValueError, OverflowError, RuntimeError, struct.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        count, height, width, _ = frames.shape
        told = f"{count} frames of {width}x{height} could not be made a {kind}: {error or type(error).__name__}"
        raise EvditError(told, next_steps=["-o out.mp4"], exit_code=FAILED) from error


def durations(count: int, fps: Fraction, unit: int) -> list[int]:
    """Milliseconds of each of `count` frames, multiples of `unit` whose sum stays near the true time."""
    return [end - start for start, end in pairwise(end_of(index, fps, unit) for index in range(count + 1))]


def end_of(count: int, fps: Fraction, unit: int) -> int:
    """The millisecond at which `count` frames are over, a multiple of `unit`, and no frame without a time."""
    return max(round(1000 * count / fps / unit), count) * unit


def comment_text(comment: Mapping[str, str], fps: Fraction, count: int) -> str:
    """The comment as JSON, in ASCII for Exif's sake, with the rate and the number of frames first."""
    return json.dumps({FPS_KEY: str(fps), COUNT_KEY: str(count), **comment})


def read_animation(path: Path) -> Told:
    """A GIF or WebP. Raises EvditError for a damaged one, and for one whose comment claims what its times are not."""
    lasting: list[float] = []
    with damage_told(path), opened(path) as animation:
        size = (animation.height, animation.width)
        unit = 10 if animation.format == "GIF" else 1
        for picture in ImageSequence.Iterator(animation):
            picture.load()
            lasting.append(max(float(picture.info.get("duration") or 0), 1.0))
    told = told_rate(path)
    if told is None:
        return Fraction(1000 * len(lasting)) / Fraction(sum(lasting)), size, animation_frames(path, [1] * len(lasting))
    fps, count = told
    alone = len(lasting) == 1 and lasting[0] == 1
    room = unit + sum(lasting) * 1e-6  # an older file tells its rate in six digits
    fits = 0 < count <= MOST_REPEATS if alone else abs(end_of(count, fps, unit) - sum(lasting)) <= room
    if not fits or count < len(lasting):
        claim = f"its comment claims {count} frames at {fps} a second"
        raise unreadable(path, f"{claim}, its {len(lasting)} pictures last {sum(lasting) / 1000:g} s")
    ends = [min(round(time * float(fps) / 1000), round(time / unit)) for time in accumulate(lasting)]
    ends[-1] = count
    return fps, size, animation_frames(path, [max(end - start, 1) for start, end in pairwise([0, *ends])])


def animation_frames(path: Path, repeats: Sequence[int]) -> Iterator[np.ndarray]:
    """Each picture of a GIF or WebP, uint8 (H, W, 3), as often as `repeats` says. Raises EvditError for damage."""
    with damage_told(path), opened(path) as animation:
        for picture, times in zip(ImageSequence.Iterator(animation), repeats, strict=True):
            frame = np.asarray(picture.convert("RGB"))
            for _ in range(times):
                yield frame


def read_folder(path: Path) -> Told:
    """A folder of PNGs by name. Raises EvditError for none or unequal ones."""
    files = sorted(path.glob("[!.]*.png"))
    if not files:
        raise EvditError(f"{path} holds no PNGs", where=str(path))
    with damage_told(files[0]), opened(files[0]) as first:
        size = (first.height, first.width)
    rate, count = told_rate(path) or (FOLDER_FPS, len(files))
    if count != len(files):
        raise unreadable(path, f"it holds {len(files)} of {count} frames")
    return rate, size, folder_frames(files, size)


def folder_frames(files: Sequence[Path], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Each PNG, uint8 (H, W, 3). Raises EvditError for a damaged one and for another size."""
    for file in files:
        with damage_told(file), opened(file) as picture:
            if (picture.height, picture.width) != size:
                raise EvditError(f"{file.name} is not as large as {files[0].name}", where=str(file))
            frame = np.asarray(picture.convert("RGB"))
        yield frame


def read_comment(path: Path) -> str:
    """The comment of a GIF, a WebP or the first PNG of a folder, "" where there is none. Raises EvditError."""
    file = min(path.glob("[!.]*.png"), default=path) if path.is_dir() else path
    with damage_told(file), opened(file) as picture:
        text = picture.info.get("comment") or picture.info.get("Comment") or picture.getexif().get(IMAGE_DESCRIPTION)
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text or "")


def told_rate(path: Path) -> tuple[Fraction, int] | None:
    """The rate and the number of frames that a comment of ours tells, else None."""
    try:
        content = json.loads(read_comment(path))
        fps, count = to_fraction(content[FPS_KEY]), int(content[COUNT_KEY])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return (fps, count) if fps and fps > 0 else None


def opened(path: Path) -> Image.Image:
    """A picture that is not decoded yet. Raises what is UNREADABLE, also where Pillow would only warn of its size.

    That is 90 million pixels: 300 kB of one colour hold them, and what measures a frame takes 50 bytes of each.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(path)


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """What Pillow raises for a damaged picture, or one that claims to be huge, as EvditError."""
    try:
        yield
    except UNREADABLE as error:
        raise unreadable(path, str(error) or type(error).__name__) from error


def unreadable(path: Path, why: str) -> EvditError:
    """The error for a picture that Pillow can't decode."""
    return EvditError(f"{path} can't be read as pictures: {why}", where=str(path))


def holds_only_frames(folder: Path) -> bool:
    """Whether everything in a folder is a numbered PNG; hidden files don't count."""
    return all(file.name.startswith(".") or (is_frame(file) and file.is_file()) for file in folder.iterdir())


def is_frame(file: Path) -> bool:
    """Whether a file has the name of a frame."""
    return FRAME_NAME.fullmatch(file.name) is not None
