"""Where the videos of a generation go: one file, or a run folder that the same command goes on from."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count
from pathlib import Path

from vdit_cli.artifacts.atomic import check_writable, free_name
from vdit_cli.artifacts.changes import differences
from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.receipt import SCHEMA, Receipt
from vdit_cli.artifacts.run_dir import RUN_FILE, Request, RunDir, holds_files
from vdit_cli.artifacts.run_form import known_manifest
from vdit_cli.artifacts.video_file import WRITTEN, check_output
from vdit_cli.errors import EvditError, quoted
from vdit_cli.reader import kept

COMMAND = "generate"
RECEIPT_FILE = "receipt.json"
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

    @property
    def role(self) -> str:
        """What run.json calls it."""
        return f"video {self.path.stem}"


def is_single(out: Path, prompts: Sequence[str], num: int, from_file: bool) -> bool:
    """Whether `out` names the one video of a command. Raises EvditError for several videos and a file's name."""
    if len(prompts) * num == 1 and not from_file:
        return True
    if out.suffix.lower() in WRITTEN:
        by_words = not from_file and num == 1
        several = f"{len(prompts)} prompts" if num == 1 else f"{len(prompts) * num} videos"
        rule = "quote the prompt if it is one" if by_words else "-o must be a folder"
        raise EvditError(
            f"{several} don't fit into the file {out}: {rule}",
            where=f"-o {out}",
            next_steps=([quoted(" ".join(prompts))] if by_words else []) + [f"-o {quoted(out.with_suffix(''))}"],
        )
    return False


def clips_in(folder: Path, prompts: Sequence[str], num: int, seed: int, files: str) -> list[Clip]:
    """The clips of `num` videos a prompt, video i with seed + i, named by number and prompt; "png" are folders."""
    every = [prompt for prompt in prompts for _ in range(num)]
    suffix = "" if files == "png" else f".{files}"
    return [Clip(prompt, seed + i, folder / f"{i:04d}-{slug(prompt)}{suffix}") for i, prompt in enumerate(every)]


def slug(prompt: str) -> str:
    """A prompt as part of a file name: small ASCII letters, digits and dashes; "video" where none is left."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "video"


def named_place(out: Path) -> Path:
    """A place with a name of its own: `.` and `sub/..` are spelt out."""
    return out if out.name not in ("", "..") else Path(os.path.abspath(out))


def check_file(clip: Clip, overwrite: bool) -> None:
    """Raise EvditError (exit 2) where a single video or its receipt is there already or can't be written."""
    check_output(clip.path, overwrite)
    check_writable(clip.sidecar, where=f"-o {clip.path}")
    told = kept(Receipt, clip.sidecar, "receipt", SCHEMA)
    if clip.sidecar.exists() and (told is None or not told.output):
        raise EvditError(
            f"{clip.sidecar} is no receipt of a video: it would hold this video's receipt",
            where=f"-o {clip.path}",
            next_steps=["another name"],
        )
    if told and (other := _others_video(clip, told)):
        raise EvditError(
            f"{clip.sidecar} is the receipt of {other}: {clip.path} would have the same",
            where=f"-o {clip.path}",
            next_steps=[f"-o {quoted(beside_taken(clip).path)}"],
        )
    if told is not None and not overwrite:
        raise EvditError(
            f"{clip.sidecar} exists: it would hold this video's receipt",
            where=f"-o {clip.path}",
            next_steps=["--overwrite", "another name"],
        )


def _others_video(clip: Clip, told: Receipt) -> Path | None:
    """The video of another name, still there, that the receipt in a clip's place is of."""
    other = clip.path.parent / Path(str(told.output)).name
    is_there = other.name != clip.path.name and other != clip.path.parent and os.path.exists(other)
    return other if is_there and path_digest(other) == told.output_sha256 else None


def beside_taken(clip: Clip) -> Clip:
    """The clip with -2, -3, ... in its name, whichever is free for the video and for its receipt."""
    path = clip.path
    clips = (replace(clip, path=path.with_name(f"{path.stem}-{number}{path.suffix}")) for number in count(2))
    return next(each for each in clips if not os.path.lexists(each.path) and not os.path.lexists(each.sidecar))


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise EvditError (exit 2) where the folder for several videos is something else or can't be written."""
    told = f"-o {folder}"
    if folder.is_file():
        raise EvditError(f"{folder} is a file: several videos go into a folder", where=told, next_steps=["another -o"])
    if (folder / RUN_FILE).exists():
        RunDir.of_command(folder, COMMAND)
    elif folder.is_dir() and holds_files(folder):
        if not overwrite:
            raise EvditError(
                f"the folder {folder} exists and was not made by evdit",
                where=told,
                next_steps=["another -o", "--overwrite"],
            )
        if (folder / RECEIPT_FILE).exists():
            raise EvditError(f"{folder / RECEIPT_FILE} is not of a run of evdit", where=told, next_steps=["another -o"])
    check_writable(folder / "video.mp4", where=told)


def open_run(folder: Path | None, request: Request, overwrite: bool) -> RunDir:
    """The run at `folder`, new or gone on with; without a folder the default one of the command, date and model.

    Raises EvditError (exit 2), with the keys that differ, for a run that was asked for something else, unless
    `overwrite`: then the new run takes its place, video by video.
    """
    if folder is not None and overwrite and folder.is_dir() and not (folder / RUN_FILE).exists():
        return RunDir(folder, request.manifest())
    if folder is not None and overwrite and folder.exists():
        return RunDir.anew(folder, request)
    told = known_manifest(folder) if folder is not None and request.length is None else None
    is_by_number = told is not None and [*differences(told, request.manifest())] == ["num"]
    remark = "  (all are made anew: of several prompts, the later ones' videos get other seeds)" if is_by_number else ""
    run = RunDir.start(folder, request, otherwise=[f"--overwrite{remark}"])
    return RunDir.anew(run.path, request) if overwrite and (run.path / RUN_FILE).exists() else run


def waiting(run: RunDir, clips: Sequence[Clip]) -> list[Clip]:
    """The clips whose video or receipt is not in the run, or is no longer what it was, in order."""
    return [clip for clip in clips if not run.is_whole(clip.role)]


def step_aside(path: Path) -> Path | None:
    """Rename a folder that stands where a video is to be written; its new name, or None where it is gone or was none.

    Nobody but its owner knows what it holds.
    """
    if not path.is_dir() or path.is_symlink():
        return None
    if not any(path.iterdir()):
        path.rmdir()
        return None
    free = free_name(path.with_name(f"{path.name}.aside"))
    path.rename(free)
    return free


def note_finished(run: RunDir, clips: Sequence[Clip]) -> None:
    """Write into run.json that clips and their receipts are on the disk."""
    for clip in clips:
        run.note_output(clip.role, clip.path.name, clip.sidecar.name)
    run.save()


def write_receipt(run: RunDir, finished: Sequence[Clip]) -> None:
    """Write the run's own receipt: those of its finished clips together."""
    if finished:
        asked = {"asked": run.manifest["values"], "output": None, "output_sha256": None}
        receipts = [Receipt.read(clip.sidecar) for clip in finished]
        replace(reduce(Receipt.joined, receipts), **asked).write(run.path / RECEIPT_FILE)
