"""The videos that are scored: where they lie, and the prompt and seed that each was made from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.stills import holds_only_frames
from vdit_cli.artifacts.video_file import READ_BY_FFMPEG, existing, read_metadata
from vdit_cli.errors import EvditError, quoted
from vdit_cli.timing import Progress

VIDEO_SUFFIXES = (*READ_BY_FFMPEG, ".gif", ".webp")


@dataclass(frozen=True)
class Video:
    """A video on disk, its digest, and the prompt and seed that it was made from, None where nothing tells."""

    path: Path
    digest: str
    prompt: str | None
    seed: int | None


def videos_at(paths: Iterable[Path | str], progress: Progress) -> list[Video]:
    """The videos at `paths` and in folders there, in order. Raises EvditError as `find_videos` and `find_source` do."""
    found = [path for place in paths for path in find_videos(Path(place))]  # all of them before any is opened
    return [find_source(path, progress) for path in found]


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


def find_source(video: Path, progress: Progress) -> Video:
    """A video with its prompt and seed: those of the receipt beside it, or else of its metadata.

    A receipt that holds the digest of another video is not asked, which is said. Raises EvditError for a receipt that
    is not JSON, and for what is no video.
    """
    digest = path_digest(video)
    sidecar = video.with_name(bare_name(video) + ".json")
    if sidecar.is_file():
        try:
            content = json.loads(sidecar.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EvditError(f"{sidecar} is not JSON: {error}", where=str(sidecar)) from error
        told = content if isinstance(content, dict) else {}
        asked = told.get("asked")
        asked = asked if isinstance(asked, dict) else {}
        prompt = asked.get("prompt")
        is_own = told.get("output_sha256") in (None, digest)
        if isinstance(prompt, str) and is_own:
            return Video(video, digest, prompt, _seed(asked.get("seed")))
        if not is_own:
            progress.say(f"{sidecar} is the receipt of another video: what {video.name} tells itself is taken")
    metadata = read_metadata(video)
    return Video(video, digest, metadata.get("prompt"), _seed(metadata.get("seed")))


def bare_name(video: Path) -> str:
    """A video's name without its suffix; a folder of frames has none, whatever dots it has."""
    return video.name if video.is_dir() else video.stem


def _seed(told: object) -> int | None:
    """A seed of a receipt (a number) or of metadata (text)."""
    is_number = isinstance(told, int) or (isinstance(told, str) and told.isascii() and told.isdigit())
    return int(str(told)) if is_number and not isinstance(told, bool) else None


def _is_frames(folder: Path) -> bool:
    return any(folder.iterdir()) and holds_only_frames(folder)
