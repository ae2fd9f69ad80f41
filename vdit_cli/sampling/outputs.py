"""Where the videos of a generation go: one file, or a folder with a manifest that the same command goes on from."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.errors import EvditError

MANIFEST = "manifest.json"
SCHEMA = "evdit.videos/1"
SUFFIXES = (".mp4", ".gif", ".webp")
SLUG_LENGTH = 48


@dataclass(frozen=True)
class Clip:
    """One video to make: its prompt, its own seed, and its place (a folder of PNGs where the path has no suffix)."""

    prompt: str
    seed: int
    path: Path

    @property
    def sidecar(self) -> Path:
        """The receipt beside the video: out.json of out.mp4."""
        return self.path.with_name(self.path.stem + ".json")


@dataclass(frozen=True)
class Outputs:
    """All clips of a command in order, and the `folder` with their manifest (None for a single file)."""

    clips: tuple[Clip, ...]
    folder: Path | None = None


def is_single(out: str | None, prompts: Sequence[str], num: int, from_file: bool) -> bool:
    """Whether one video is made into the file `out`. Raises EvditError for several videos and a file's name."""
    count = len(prompts) * num
    if out is None:
        return False
    suffix = Path(out).suffix.lower()
    if count == 1 and not from_file:
        if suffix not in SUFFIXES and not out.endswith(("/", "\\")):
            raise EvditError(
                f"{out} names no kind of video: it must end in {', '.join(SUFFIXES)}, or in / for a folder of PNGs",
                where=f"-o {out}",
                next_steps=[f"-o {out}.mp4", f"-o {out}/"],
            )
        return True
    if suffix in SUFFIXES:
        quoted = " ".join(prompts)
        by_words = not from_file and num == 1
        raise EvditError(
            f"{count} videos don't fit into one file"
            + (f": {len(prompts)} prompts were given, quote the prompt if it is one" if by_words else ""),
            where=f"-o {out}",
            next_steps=([f'"{quoted}"'] if by_words else []) + [f"-o {Path(out).with_suffix('')}/"],
        )
    return False


def lay_out(
    folder: Path | None, file: str | None, prompts: Sequence[str], num: int, seed: int, suffix: str = ".mp4"
) -> Outputs:
    """The clips of `num` videos a prompt, video i with seed + i: into `file`, else named in `folder`."""
    if file is not None:
        return Outputs((Clip(prompts[0], seed, Path(file)),))
    if folder is None:
        raise ValueError("neither a file nor a folder")
    clips = []
    for number, prompt in enumerate(prompt for prompt in prompts for _ in range(num)):
        clips.append(Clip(prompt, seed + number, folder / f"{number:04d}-{slug(prompt)}{suffix}"))
    return Outputs(tuple(clips), folder)


def slug(prompt: str) -> str:
    """A prompt as part of a file name: small ASCII letters, digits and dashes; "video" where none is left."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "video"


def check_writable(outputs: Outputs, overwrite: bool) -> None:
    """Raise EvditError (exit 2) where the place of the videos is taken or can't be written; nothing is made yet."""
    if outputs.folder is None:
        clip = outputs.clips[0]
        for path in (clip.path, clip.sidecar):
            if path.exists() and not overwrite:
                raise EvditError(f"{path} exists already", where=f"-o {clip.path}", next_steps=["--overwrite"])
        if clip.path.is_dir() != (not clip.path.suffix) and clip.path.exists():
            kind = "a folder" if clip.path.is_dir() else "a file"
            raise EvditError(f"{clip.path} is {kind}", where=f"-o {clip.path}", next_steps=["another -o"])
    elif outputs.folder.exists():
        if not outputs.folder.is_dir():
            raise EvditError(f"{outputs.folder} is a file", where=f"-o {outputs.folder}", next_steps=["another -o"])
        if not (outputs.folder / MANIFEST).exists() and any(outputs.folder.iterdir()) and not overwrite:
            raise EvditError(
                f"the folder {outputs.folder} exists already and was not made by evdit generate",
                where=f"-o {outputs.folder}",
                next_steps=["another -o", "--overwrite"],
            )
    _check_parent(outputs.folder or outputs.clips[0].path)


def _check_parent(path: Path) -> None:
    """Raise EvditError where no file can be made beside or below `path`, found out by making one and removing it."""
    there = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    probe = there / f".{path.name[:50]}.writable"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EvditError(
            f"{path} can't be written: {error.strerror}", where=f"-o {path}", next_steps=["another place with -o"]
        ) from error
    for parent in path.absolute().parents:
        if parent.is_file():
            raise EvditError(f"{path} can't be written: {parent} is a file", where=f"-o {path}")


class Manifest:
    """manifest.json of a folder of videos: the command that makes them (`key`) and which of them are done."""

    def __init__(self, folder: Path, key: Mapping[str, Any], clips: Sequence[Clip], done: Mapping[str, str]) -> None:
        self.folder = folder
        self.key = dict(key)
        self.clips = tuple(clips)
        self.done = dict(done)

    @classmethod
    def open(cls, outputs: Outputs, key: Mapping[str, Any], overwrite: bool) -> Manifest:
        """The folder's manifest, with what is done of this very command; a new one where there is none.

        Raises EvditError (exit 2), with the keys that differ, for a folder of another command, unless `overwrite`:
        then the videos of that command are removed as the new ones come.
        """
        folder = outputs.folder
        if folder is None:
            raise ValueError("a single file has no manifest")
        path = folder / MANIFEST
        key = json.loads(json.dumps(key))
        if not path.exists():
            return cls(folder, key, outputs.clips, {})
        found = _read(path)
        names = {clip.path.name for clip in outputs.clips}
        if overwrite:
            for video in found["videos"]:
                _remove_video(folder, video["file"], keep=names)
            return cls(folder, key, outputs.clips, {})
        different = [name for name in {**found["key"], **key} if found["key"].get(name) != key.get(name)]
        if different:
            listed = "".join(f"\n    {name}: {found['key'].get(name)!r}, now {key.get(name)!r}" for name in different)
            raise EvditError(
                f"{folder} holds the videos of another command: {', '.join(different)} differ{listed}",
                where=str(path),
                next_steps=["another -o", "--overwrite"],
            )
        done = {video["file"]: video["receipt"] for video in found["videos"] if video["state"] == "done"}
        there = {name: receipt for name, receipt in done.items() if (folder / name).exists()}
        return cls(folder, key, outputs.clips, there)

    def waiting(self) -> list[Clip]:
        """The clips that are still to be made, in order."""
        return [clip for clip in self.clips if clip.path.name not in self.done]

    def finish(self, clip: Clip) -> None:
        """Write down that a clip and its receipt are on the disk."""
        self.done[clip.path.name] = clip.sidecar.name
        self.write()

    def write(self) -> None:
        """Write the manifest, whole or not at all."""
        videos = [
            {
                "file": clip.path.name,
                "prompt": clip.prompt,
                "seed": clip.seed,
                "receipt": clip.sidecar.name,
                "state": "done" if clip.path.name in self.done else "waiting",
            }
            for clip in self.clips
        ]
        write_json(self.folder / MANIFEST, {"schema": SCHEMA, "key": self.key, "videos": videos})


def _read(path: Path) -> dict[str, Any]:
    """The manifest in `path`, each file name inside its folder. Raises EvditError (exit 2) for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        videos = found["videos"]
        whole = found["schema"] == SCHEMA and isinstance(found["key"], dict) and isinstance(videos, list)
        plain = all(Path(video[name]).name == video[name] for video in videos for name in ("file", "receipt"))
        whole = whole and plain and all(video["state"] in ("done", "waiting") for video in videos)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvditError(f"{path} can't be read: {error}", where=str(path), next_steps=["another -o"]) from error
    if not whole:
        raise EvditError(f"{path} is no {SCHEMA}", where=str(path), next_steps=["another -o"])
    return found


def _remove_video(folder: Path, name: str, keep: set[str]) -> None:
    """Remove a video of an earlier command with its receipt; names that the new command writes anyway stay."""
    if name not in keep:
        for path in (folder / name, (folder / name).with_suffix(".json")):
            if path.is_file():
                path.unlink()
