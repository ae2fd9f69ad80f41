"""Videos on disk: .mp4, animated .gif and .webp, and folders of PNGs. Numpy only, no torch.

T frames, H and W pixels; a video is a uint8 array (T, H, W, 3), RGB. Metadata is a flat dict of text; in the file it is
one JSON object in the container's comment (and in an mp4 a tag for each key besides).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np

from vdit_cli.artifacts import mp4, stills
from vdit_cli.artifacts.atomic import check_writable, replacing_together
from vdit_cli.artifacts.frames import Frames
from vdit_cli.errors import EvditError, quoted
from vdit_cli.knobs import FASTEST, SLOWEST, to_fraction

WRITTEN = (".mp4", ".gif", ".webp")
"""Suffixes that can be written, besides a folder of PNGs (no suffix, or a slash at the end)."""
READ_BY_FFMPEG = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")


def write_video(
    path: Path | str,
    frames: np.ndarray,
    fps: Fraction | float,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write `frames` (uint8 T, H, W, 3) at `fps` frames a second, whole or not at all.

    Raises EvditError as `check_output` and `encode` do, and with exit 1 for a full disk; ValueError for another array.
    """
    rate = rate_of(fps)
    check_output(path, overwrite)
    with replacing_together(path, drop=stills.is_frame) as (beside,):
        encode(beside, kind_of(path), frames, rate, metadata or {})


def encode(
    place: Path,
    kind: str,
    frames: np.ndarray | Frames,
    fps: Fraction | float,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a video of the `kind` that `kind_of` tells to exactly `place`, where nothing stands yet.

    Looks at no older result and is not whole at once: that is for a caller that puts several files in place together.
    Of `Frames` a .mp4 and a folder have few in memory at once, a .gif or .webp all.
    Raises EvditError (exit 1) where the encoder fails, OSError where the disk does; ValueError for another array.
    """
    dtype = frames.dtype if isinstance(frames, np.ndarray) else np.dtype(np.uint8)
    if dtype != np.uint8 or len(frames.shape) != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"a video is uint8 (T, H, W, 3), not {dtype} {frames.shape}")
    write = {".mp4": mp4.write, ".gif": stills.write_gif, ".webp": stills.write_webp, "": stills.write_folder}[kind]
    comment = {str(key): str(value).replace("\0", "") for key, value in (metadata or {}).items()}
    write(place, frames, rate_of(fps), comment)


def rate_of(fps: Fraction | float | str) -> Fraction:
    """Frames a second, exactly. Raises EvditError (exit 2) for what is no number, is too slow or too fast."""
    rate = to_fraction(fps)
    if rate is None or not SLOWEST <= rate <= FASTEST:
        rule = f"a positive number or a fraction such as 24000/1001, at least {SLOWEST}, at most {FASTEST}"
        raise EvditError(f"{fps} frames a second can't be: it must be {rule}", where=f"--fps {fps}")
    return rate


def read_video(path: Path | str) -> tuple[np.ndarray, Fraction]:
    """(frames uint8 (T, H, W, 3), frames a second) of a video file or a folder of PNGs, whole.

    Raises EvditError for what is missing, damaged, or no video.
    """
    rate, _, frames = read_frames(path)
    return np.stack(list(frames)), rate


def read_frames(path: Path | str) -> stills.Told:
    """(frames a second, (H, W), frames uint8 (H, W, 3) one at a time) of a video file or a folder of PNGs.

    Few of the frames are held at once. Raises EvditError for what is missing, damaged, or no video; for damage further
    on, when it is come to.
    """
    path = existing(path)
    if path.is_dir():
        return stills.read_folder(path)
    if path.suffix.lower() in (".gif", ".webp"):
        return stills.read_animation(path)
    if path.suffix.lower() in READ_BY_FFMPEG:
        return mp4.read(path)
    raise unknown_suffix(path, (*READ_BY_FFMPEG, ".gif", ".webp"))


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata that `write_video` was given, {} where there is none of ours. Raises EvditError as `read_video`."""
    path = existing(path)
    if path.is_dir() or path.suffix.lower() in (".gif", ".webp"):
        text = stills.read_comment(path)
    elif path.suffix.lower() in READ_BY_FFMPEG:
        text = mp4.read_comment(path)
    else:
        raise unknown_suffix(path, (*READ_BY_FFMPEG, ".gif", ".webp"))
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # a comment that another program wrote
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: str(value) for key, value in content.items() if key not in (stills.FPS_KEY, stills.COUNT_KEY)}


def kind_of(path: Path | str) -> str:
    """The suffix that decides the format, "" for a folder of PNGs. Raises EvditError for one that can't be written."""
    if str(path).endswith(("/", os.sep)):
        return ""
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in WRITTEN:
        raise unknown_suffix(Path(path), WRITTEN)
    return suffix


def check_output(path: Path | str, overwrite: bool = False) -> None:
    """Whether a video could be written to `path`, asked before the work that makes it.

    Raises EvditError (exit 2) for an unknown suffix, an existing result without `overwrite`, a folder that holds
    anything but numbered PNGs, and a place that can't be written; as `check_encoder` does where that fails.
    """
    kind = kind_of(path)
    is_folder = kind == ""
    path = Path(path)
    told = f"-o {path}"
    check_writable(path, where=told)
    if path.is_dir() and not is_folder:
        raise EvditError(
            f"{path} is a folder: a {path.suffix} is a file",
            where=told,
            next_steps=[f"-o {quoted(path / 'video.mp4')}"],
        )
    if path.is_file() and is_folder:
        raise EvditError(
            f"{path} is a file: without a suffix a folder of PNGs is made",
            where=told,
            next_steps=[f"-o {quoted(Path(f'{path}.mp4'))}"],
        )
    if path.is_dir() and not stills.holds_only_frames(path):
        raise EvditError(f"{path} holds other files than frames", where=told, next_steps=["an empty or new folder"])
    taken = any(map(stills.is_frame, path.iterdir())) if path.is_dir() else path.exists()
    if taken and not overwrite:
        raise EvditError(f"{path} exists", where=told, next_steps=["--overwrite", "another name"])
    check_encoder(kind)


def check_encoder(kind: str) -> None:
    """Raise EvditError (exit 3), with the fix, where what encodes videos of this `kind` is missing."""
    if kind == ".mp4":
        mp4.check_encoder()


def existing(path: Path | str) -> Path:
    """`path`, if a file or a folder is there. Raises EvditError otherwise."""
    path = Path(path)
    if not path.exists():
        raise EvditError(f"{path} is not there", where=str(path))
    if not (path.is_file() or path.is_dir()):
        raise EvditError(f"{path} is no regular file", where=str(path))
    return path


def unknown_suffix(path: Path, known: tuple[str, ...]) -> EvditError:
    """The error for a suffix that is none of `known`."""
    return EvditError(
        f"{path.name} is no known kind of video: it must end in {', '.join(known)}, or be a folder of PNGs",
        where=str(path),
        next_steps=[quoted(path.with_suffix(".mp4"))],
    )
