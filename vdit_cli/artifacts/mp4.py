"""H.264 video by PyAV, in this process and through files opened here: ffmpeg sees no name, and so any name will do.

T frames, H and W pixels; a video is a uint8 array (T, H, W, 3), RGB. imageio's own plugin for PyAV writes neither tags
nor the index at the front, and takes a file that is cut short for a shorter video: PyAV is asked directly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EAGAIN, ENOMEM
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from vdit_cli.artifacts.frames import Frames
from vdit_cli.errors import ENVIRONMENT, FAILED, EvditError

ENCODER = "libx264"
CRF = 17
"""Constant rate factor of x264: 17 can't be told from the original by eye."""
ALIKE = "mbtree=0"
"""Without its macroblock tree x264 makes the same file of the same frames each time. With it, small pictures differ by
what lay in memory before: of 64 x 64 pixels 305 of 800 encodings were others, 28 kinds in all (PyAV 18.1)."""
BT709, LIMITED = 1, 1
"""ffmpeg's numbers for the colours that are written: primaries, transfer and matrix of BT.709, 16 to 235."""
TO_H264 = (
    ("scale", "out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int"),
    ("format", "yuv420p"),
    ("setparams", "colorspace=bt709:color_primaries=bt709:color_trc=bt709"),
)
TO_RGB = (("scale", "flags=accurate_rnd+full_chroma_int+full_chroma_inp"), ("format", "rgb24"))
FIXES = ("pip install --force-reinstall av", "-o out.gif")
FEW = 1
"""Frames a second that are taken where a file tells no rate."""
SIZE_TAG = "evdit_size"
"""Tag with the true WxH of a video whose odd size was padded: 4:2:0 colour needs even numbers."""


def pyav() -> Any:
    """The package `av`, imported when a video needs it. Raises EvditError (exit 3), with the fix, where it can't be."""
    try:
        import av
    except ImportError as error:
        why = f"mp4 files can be neither written nor read: PyAV can't be imported ({error})"
        raise EvditError(why, next_steps=FIXES, exit_code=ENVIRONMENT) from error
    return av


def check_encoder() -> None:
    """Raise EvditError (exit 3), with the fix, where PyAV or its encoder of H.264 is missing."""
    try:
        pyav().Codec(ENCODER, "w")
    except ValueError as error:
        why = f"mp4 files can't be written: this PyAV was built without {ENCODER}"
        raise EvditError(why, next_steps=FIXES, exit_code=ENVIRONMENT) from error


def write(path: Path, frames: np.ndarray | Frames, fps: Fraction, comment: Mapping[str, str]) -> None:
    """Encode `frames` to `path`; every entry of `comment` becomes a tag, all of them a JSON object in "comment".

    Raises OSError when the disk is full, EvditError (exit 1) for any other failure of the encoder.
    """
    av = pyav()
    count, height, width, _ = frames.shape
    tags = dict(comment)
    if comment:
        tags["comment"] = json.dumps(dict(comment), ensure_ascii=False)
    if height % 2 or width % 2:
        tags[SIZE_TAG] = f"{width}x{height}"
    whole = BytesIO()  # a full disk inside ffmpeg's call for a file could not be told: it sees memory only
    try:
        with writing(av, whole) as container:
            container.metadata.update(tags)
            stream = container.add_stream(ENCODER, rate=fps, options={"crf": str(CRF), "x264-params": ALIKE})
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            stream.thread_type = "AUTO"  # its own default cuts each picture into slices: larger files
            coder = stream.codec_context
            coder.thread_count = threads_of(height, width)
            coder.colorspace = coder.color_primaries = coder.color_trc = BT709
            coder.color_range = LIMITED
            graph = None
            for picture in pictures(av, frames, fps):
                graph = graph or filters(av, picture, TO_H264)
                container.mux(stream.encode(filtered(graph, picture)))
            container.mux(stream.encode(None))
    except (av.FFmpegError, ValueError) as error:
        if is_starved(error):
            raise starved(f"to encode {count} frames of {width}x{height}", error) from error
        why = f"{ENCODER} could not encode {count} frames of {width}x{height}: {reason(error)}"
        raise EvditError(why, exit_code=FAILED) from error
    path.write_bytes(whole.getbuffer())


def threads_of(height: int, width: int) -> int:
    """Threads that encode or decode pictures of a size: one for each 640 x 360, at most 8.

    x264 notes their number in the file, which is so the same on every machine; and of many small videos at once, each
    with a thread a core, a large machine has not threads enough.
    """
    return min(8, max(1, height * width // (640 * 360)))


def writing(av: Any, whole: BytesIO) -> Any:
    """An mp4 container in `whole`, which ffmpeg reads a second time in the end, to move its index to the front."""
    options = {"movflags": "+faststart+use_metadata_tags"}
    return av.open(whole, "w", format="mp4", options=options, io_open=lambda *_: BytesIO(whole.getvalue()))


def pictures(av: Any, frames: np.ndarray | Frames, fps: Fraction) -> Iterator[Any]:
    """Each frame as PyAV's, an odd row or column doubled, with its time."""
    odd = ((0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0))
    for number, frame in enumerate(frames):
        picture = av.VideoFrame.from_ndarray(np.pad(frame, odd, mode="edge"), format="rgb24")
        picture.pts, picture.time_base, picture.duration = number, 1 / fps, 1
        yield picture


def read(path: Path) -> tuple[Fraction, tuple[int, int], Iterator[np.ndarray]]:
    """(frames a second, (H, W), frames one at a time) of a video file. Raises EvditError for a damaged one."""
    with reading(path) as (_, container, stream):
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise unreadable(path, "it tells no rate")
        size = true_size(path, (stream.height, stream.width), container.metadata.get(SIZE_TAG))
    return Fraction(rate), size, frames_of(path, size)


def true_size(path: Path, size: tuple[int, int], tag: str | None) -> tuple[int, int]:
    """(H, W) without the row and the column that an odd size was padded by. Raises EvditError for an untrue tag."""
    if tag is None:
        return size
    told = re.fullmatch(r"(\d{1,9})x(\d{1,9})", tag, re.ASCII)
    width, height = (int(told[1]), int(told[2])) if told else (0, 0)
    if not width or not height or (height + height % 2, width + width % 2) != size:
        raise unreadable(path, f"its tag {SIZE_TAG} is {tag[:40]!r}, its pictures are {size[1]}x{size[0]}")
    return height, width


def frames_of(path: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Each frame, uint8 (H, W, 3), cut to `size`. Raises EvditError where the file is damaged or cut short."""
    with reading(path) as (av, container, stream):
        graph, shape, packets, end = None, None, 0, 0.0
        for packet in container.demux(stream):
            packets += packet.size > 0
            for frame in packet.decode():
                graph = graph or filters(av, frame, TO_RGB)
                shape = shape or (frame.width, frame.height, frame.format.name)
                if packet.is_corrupt or frame.is_corrupt or shape != (frame.width, frame.height, frame.format.name):
                    raise unreadable(path, "a frame is damaged")
                end = max(end, (frame.time or 0.0) + float(frame.duration * frame.time_base))
                yield np.ascontiguousarray(filtered(graph, frame).to_ndarray()[: size[0], : size[1]])
        if packets < max(stream.frames, 1):
            raise unreadable(path, f"it holds {packets} of {stream.frames} frames" if packets else "it has no frames")
        lasts = lasting(container, stream)
        # Three quarters of a frame: times in these files are whole milliseconds.
        if not stream.frames and lasts - end > 0.75 / float(stream.average_rate or FEW) + 0.002:
            raise unreadable(path, f"it should last {lasts:.3f} s, and its frames end at {end:.3f} s")


def lasting(container: Any, stream: Any) -> float:
    """Seconds that a stream lasts by what its file tells, 0 where it tells nothing: .mkv and .webm count no frames."""
    tag = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", stream.metadata.get("DURATION", ""), re.ASCII)
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    is_alone = len(container.streams) == 1
    return (container.duration or 0) / 1e6 if is_alone else 0.0


def read_comment(path: Path) -> str:
    """The text of the "comment" tag, "" where there is none. Raises EvditError for a damaged file."""
    return read_tags(path).get("comment", "")


def read_tags(path: Path) -> dict[str, str]:
    """The container's tags by name. Raises EvditError for a damaged file."""
    with reading(path) as (_, container, _):
        told = dict(container.metadata)
    # From PyAV 19 on, bytes that are not UTF-8 come as lone surrogates.
    return {key: text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for key, text in told.items()}


@contextmanager
def reading(path: Path) -> Iterator[tuple[Any, Any, Any]]:
    """(PyAV, container, first video stream) of a file. Raises EvditError for what ffmpeg can't decode."""
    av = pyav()

    def refuse(*_: object) -> IO[bytes]:
        raise unreadable(path, "it names another file to read")

    try:
        with path.open("rb") as file, av.open(file, io_open=refuse, **odd_tags(av)) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise unreadable(path, "it holds no pictures that ffmpeg can decode")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = threads_of(stream.height, stream.width)
            yield av, container, stream
    except (av.FFmpegError, ValueError, OSError) as error:
        if is_starved(error):
            raise starved(f"to read {path}", error, str(path)) from error
        raise unreadable(path, reason(error)) from error


def odd_tags(av: Any) -> dict[str, str]:
    """How a tag is taken that is not UTF-8: PyAV refuses the file up to version 18, and from 19 on it is not asked."""
    return {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def filters(av: Any, frame: Any, chain: tuple[tuple[str, str], ...]) -> Any:
    """ffmpeg's filters of a chain, (name, options) each, set up for frames like this one."""
    graph = av.filter.Graph()
    told = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={frame.time_base}"
    if frame.format.name != "rgb24":  # red, green and blue have no matrix and a range of their own
        told += f":colorspace={frame.colorspace}:range={frame.color_range}"
    nodes = [graph.add("buffer", told), *(graph.add(name, options) for name, options in chain)]
    for before, after in zip(nodes, [*nodes[1:], graph.add("buffersink")], strict=True):
        before.link_to(after)
    graph.configure()
    return graph


def filtered(graph: Any, frame: Any) -> Any:
    """A frame after the filters."""
    graph.vpush(frame)
    return graph.vpull()


def reason(error: BaseException) -> str:
    """What an error of ffmpeg says, or what it is called where it says nothing."""
    return getattr(error, "strerror", None) or str(error).strip() or type(error).__name__


def is_starved(error: BaseException) -> bool:
    """Whether it is the machine that had no thread or memory left, and not the video."""
    return getattr(error, "errno", None) in (EAGAIN, ENOMEM)


def starved(what: str, error: BaseException, where: str | None = None) -> EvditError:
    """The error for a video that is as good as others, on a machine that does too much at once."""
    why = f"the machine had no thread or memory left {what}: {reason(error)}"
    return EvditError(why, where=where, next_steps=["the same command again, with fewer beside it"], exit_code=FAILED)


def unreadable(path: Path, why: str) -> EvditError:
    """The error for a file that ffmpeg can't decode."""
    return EvditError(f"{path} can't be read as a video: {why}", where=str(path))
