"""The videos that are scored: where they lie, and the prompt and seed that each was made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.stills import holds_only_frames, is_frame
from vdit_cli.artifacts.video_file import READ_BY_FFMPEG, existing, read_metadata
from vdit_cli.errors import FAILED, USAGE, EvditError, brief, quoted, together
from vdit_cli.reader import advising, read_object
from vdit_cli.timing import Progress

VIDEO_SUFFIXES = (*READ_BY_FFMPEG, ".gif", ".webp")
FRAMES = "a folder of nothing but PNGs with names of five digits or more (00000.png, 00001.png, ...)"
LONGEST_SEED = 20
"""Digits of 2^64 - 1, the largest seed of a generator."""


@dataclass(frozen=True)
class Video:
    """A video on disk, its digest, and the prompt and seed that it was made from, None where nothing tells."""

    path: Path
    digest: str
    prompt: str | None
    seed: int | None


@dataclass(frozen=True)
class AskedForm:
    """What a video was asked for."""

    prompt: str | None = None


@dataclass(frozen=True)
class ReceiptForm:
    """What is read of the receipt beside a video, which others may have written."""

    asked: AskedForm = field(default_factory=AskedForm)
    output_sha256: str | None = None

    def __post_init__(self) -> None:
        """Refuse a digest that is none, which is not another video's."""
        if self.output_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.output_sha256):
            raise ValueError(f"output_sha256 is {brief(self.output_sha256)}: it must be 64 hexadecimal digits")


def videos_at(paths: Iterable[Path | str], progress: Progress) -> list[Video]:
    """The videos at `paths` and in folders there, in order. Raises EvditError as `find_videos` and `find_source` do.

    What is wrong with several of them is told together.
    """
    found = [path for place in paths for path in find_videos(Path(place))]  # all of them before any is opened
    videos, errors = [], []
    for path in found:
        try:
            videos.append(find_source(path, progress))
        except EvditError as error:
            errors.append(error)
    if errors:
        raise together(errors, f"{len(errors)} of {len(found)} videos can't be read")
    return videos


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
            f"{path} holds no video: a video ends in {', '.join(VIDEO_SUFFIXES)}, or is {FRAMES}",
            where=str(path),
            next_steps=[
                f'evdit generate "a small blue ring bouncing over a beige background" -o {quoted(path / "ring.mp4")}'
            ],
        )
    return found


def distinct(videos: Sequence[Video], progress: Progress) -> list[Video]:
    """`videos` without those that are there twice, of equal bytes, prompt and seed, which are said."""
    first: dict[tuple, Video] = {}
    for video in videos:
        same = first.setdefault((video.digest, video.prompt, video.seed), video)
        if same is not video:
            progress.say(f"{video.path} is {same.path} once more, of one prompt and seed: it counts once")
    return list(first.values())


@contextmanager
def read_as(*videos: tuple[Path, str]) -> Iterator[None]:
    """While this lasts each video, (path, digest), is read: an error says what to do, and so does another digest after.

    A digest that is taken before would be of other bytes, where a video is made anew in the meantime.
    """
    try:
        yield
    except EvditError as error:
        if error.exit_code == USAGE and not error.next_steps:
            error.next_steps = ("make it again", "move it out of the folder and give the same command again")
        raise
    for path, digest in videos:
        if path_digest(path) != digest:
            raise _changed(path)


def find_source(video: Path, progress: Progress) -> Video:
    """A video with its prompt and seed: those of the receipt beside it, or else of its metadata.

    A receipt that holds the digest of another video is not asked, which is said. Raises EvditError for a receipt that
    is damaged, a seed that can be none, and what is no video.
    """
    before = _version(video)
    with read_as():
        metadata = read_metadata(video)  # what is no video is told before it is read whole, however long it is
    digest = path_digest(video)
    if _version(video) != before:
        raise _changed(video)
    sidecar = video.with_name(bare_name(video) + ".json")
    if sidecar.exists():
        with advising(["move it away: the video's own metadata are asked then"]):
            told = read_object(ReceiptForm, sidecar, "receipt")
        asked, prompt = told.get("asked", {}), told.get("asked", {}).get("prompt")
        is_own = told.get("output_sha256") in (None, digest)
        if prompt is not None and is_own:
            return Video(video, digest, prompt, _seed(asked.get("seed"), sidecar))
        if not is_own:
            whose = "of another video, or one of the two was changed"
            progress.say(f"{sidecar} is the receipt {whose}: what {video.name} tells itself is taken")
    return Video(video, digest, metadata.get("prompt"), _seed(metadata.get("seed"), video))


def _version(video: Path) -> list[tuple[str, int, int, int]]:
    """What the system tells of a video's files, which is another where they hold other bytes."""
    files = [(each.name, each.stat()) for each in (sorted(video.iterdir()) if video.is_dir() else [video])]
    return [(name, status.st_ino, status.st_size, status.st_mtime_ns) for name, status in files]


def _changed(video: Path) -> EvditError:
    steps = ["the same command again, once nothing writes there"]
    return EvditError(f"{video} changed while it was read", where=str(video), next_steps=steps, exit_code=FAILED)


def bare_name(video: Path) -> str:
    """A video's name without its suffix; a folder of frames has none, whatever dots it has."""
    return video.name if video.is_dir() else video.stem


def _seed(told: object, place: Path) -> int | None:
    """A seed of a receipt (a number) or of metadata (text). Raises EvditError for one that is too long."""
    is_number = isinstance(told, int) or (isinstance(told, str) and told.isascii() and told.isdigit())
    if not is_number or isinstance(told, bool):
        return None
    if len(str(told)) > LONGEST_SEED:
        what = f"{place} tells a seed of {len(str(told))} digits: it must be below 2^64"
        raise EvditError(what, where=str(place), next_steps=["make the video again"])
    return int(str(told))


def _is_frames(folder: Path) -> bool:
    return any(map(is_frame, folder.iterdir())) and holds_only_frames(folder)
