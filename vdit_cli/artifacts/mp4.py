"""H.264 video through the ffmpeg that imageio-ffmpeg brings: raw frames on its stdin, checked by its exit code.

T frames, H and W pixels; a video is a uint8 array (T, H, W, 3), RGB.
"""

from __future__ import annotations

import errno
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from vdit_cli.errors import FAILED, EvditError

CRF = 17
"""Constant rate factor of x264: 17 can't be told from the original by eye."""
SIZE_TAG = "evdit_size"
"""Tag with the true WxH of a video whose odd size was padded: 4:2:0 colour needs even numbers."""


def write(path: Path, frames: np.ndarray, fps: float, comment: Mapping[str, str]) -> None:
    """Encode `frames` to `path`; every entry of `comment` becomes a tag, all of them a JSON object in "comment".

    Raises OSError when the disk is full, EvditError (exit 1) for any other failure of ffmpeg.
    """
    count, height, width, _ = frames.shape
    tags = dict(comment)
    if comment:
        tags["comment"] = json.dumps(dict(comment), ensure_ascii=False)
    if height % 2 or width % 2:
        tags[SIZE_TAG] = f"{width}x{height}"
        frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    told = [part for key, value in tags.items() for part in ("-metadata", f"{key}={value}")]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", size, "-r", f"{fps:.6g}", "-i", "-", "-an", "-c:v", "libx264", "-crf", str(CRF)]
    # The encoder is told what the frames say of themselves; its own colour flags are not listened to.
    scale = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"
    colours = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    command += ["-vf", f"{scale},{colours}", "-pix_fmt", "yuv420p"]
    command += [*told, "-movflags", "+faststart+use_metadata_tags", "-f", "mp4", str(path)]
    done = subprocess.run(command, input=np.ascontiguousarray(frames).data, capture_output=True, check=False)
    if done.returncode:
        problem = last_line(done.stderr)
        if b"No space left on device" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        raise EvditError(f"ffmpeg could not encode {count} frames of {width}x{height}: {problem}", exit_code=FAILED)


def read(path: Path) -> tuple[np.ndarray, float]:
    """(frames uint8 (T, H, W, 3), frames a second) of a video file. Raises EvditError for a damaged one."""
    try:
        reader = imageio_ffmpeg.read_frames(str(path))
        facts = next(reader)
        reader.close()
    except (OSError, RuntimeError, StopIteration) as error:
        raise unreadable(path, str(error)) from error
    width, height = facts["source_size"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-xerror", "-noautorotate", "-i", str(path), "-an"]
    command += ["-vf", "scale=flags=accurate_rnd+full_chroma_int+full_chroma_inp", "-fps_mode", "passthrough"]
    done = subprocess.run([*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], capture_output=True, check=False)
    if done.returncode or not done.stdout or len(done.stdout) % (width * height * 3):
        raise unreadable(path, last_line(done.stderr) or "it has no frames")
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    true_size = re.fullmatch(r"(\d+)x(\d+)", read_tags(path).get(SIZE_TAG, ""))
    if true_size:
        frames = frames[:, : int(true_size[2]), : int(true_size[1])]
    return np.ascontiguousarray(frames), float(facts["fps"])


def read_comment(path: Path) -> str:
    """The text of the "comment" tag, "" where there is none. Raises EvditError for a damaged file."""
    return read_tags(path).get("comment", "")


def read_tags(path: Path) -> dict[str, str]:
    """The container's tags by name. Raises EvditError for a damaged file."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        raise unreadable(path, last_line(done.stderr))
    text = done.stdout.decode("utf-8", errors="replace")
    # One key=value a line; a backslash keeps the character after it (even a newline) from its meaning.
    pairs = re.findall(r"^((?:[^\\=;#\n\[]|\\.)(?:[^\\=\n]|\\.)*)=((?:[^\\\n]|\\.|\\\n)*)$", text, re.MULTILINE)
    return {unescaped(key): unescaped(value) for key, value in pairs}


def unescaped(text: str) -> str:
    """Text of an ffmetadata file without its backslashes."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def last_line(text: bytes) -> str:
    """The last line that ffmpeg said."""
    return (text.decode("utf-8", errors="replace").strip().splitlines() or [""])[-1]


def unreadable(path: Path, why: str) -> EvditError:
    """The error for a file that ffmpeg can't decode."""
    reason = (why.strip().splitlines() or ["unknown"])[-1]
    return EvditError(f"{path} can't be read as a video: {reason}", where=str(path))
