"""Where the videos of a generation go: one file, or a run folder that the same command goes on from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.artifacts.video_file import WRITTEN, check_name, check_output
from vdit_cli.errors import EvditError

RUN_FILE, RECEIPT_FILE = "run.json", "receipt.json"
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


def is_single(out: Path, prompts: Sequence[str], num: int, from_file: bool) -> bool:
    """Whether `out` names the one video of a command. Raises EvditError for several videos and a file's name."""
    if len(prompts) * num == 1 and not from_file:
        return True
    if out.suffix.lower() in WRITTEN:
        by_words = not from_file and num == 1
        count = f"{len(prompts)} prompts" if num == 1 else f"{len(prompts) * num} videos"
        rule = "quote the prompt if it is one" if by_words else "-o must be a folder"
        raise EvditError(
            f"{count} don't fit into the file {out}: {rule}",
            where=f"-o {out}",
            next_steps=([f'"{" ".join(prompts)}"'] if by_words else []) + [f"-o {out.with_suffix('')}"],
        )
    return False


def clips_in(folder: Path, prompts: Sequence[str], num: int, seed: int) -> list[Clip]:
    """The clips of `num` videos a prompt, video i with seed + i, named by number and prompt."""
    every = [prompt for prompt in prompts for _ in range(num)]
    return [Clip(prompt, seed + i, folder / f"{i:04d}-{slug(prompt)}.mp4") for i, prompt in enumerate(every)]


def slug(prompt: str) -> str:
    """A prompt as part of a file name: small ASCII letters, digits and dashes; "video" where none is left."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode("ascii").lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "video"


def check_file(clip: Clip, overwrite: bool) -> None:
    """Raise EvditError (exit 2) where a single video or its receipt is there already or can't be written."""
    check_output(clip.path, overwrite)
    if clip.sidecar.exists() and not overwrite:
        raise EvditError(
            f"{clip.sidecar} exists: it would hold this video's receipt",
            where=f"-o {clip.path}",
            next_steps=["--overwrite", "another name"],
        )


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise EvditError (exit 2) where the folder for several videos is something else or can't be written."""
    told = f"-o {folder}"
    check_name(folder)
    if folder.is_file():
        raise EvditError(f"{folder} is a file: several videos go into a folder", where=told, next_steps=["another -o"])
    if folder.is_dir() and not (folder / RUN_FILE).exists() and any(folder.iterdir()) and not overwrite:
        raise EvditError(
            f"the folder {folder} exists and was not made by evdit",
            where=told,
            next_steps=["another -o", "--overwrite"],
        )
    check_output(folder / "video.mp4", overwrite=True)


def open_run(folder: Path | None, request: Request, overwrite: bool) -> RunDir:
    """The run at `folder`, new or gone on with; without a folder the default one of the command, date and model.

    Raises EvditError (exit 2), with the keys that differ, for a run that was asked for something else; with `overwrite`
    the videos of that run are removed and a new one begins.
    """
    if folder is None or not folder.exists():
        run = RunDir.start(folder, request)
    elif not (folder / RUN_FILE).exists():
        run = RunDir(folder, request.manifest())
        run.save()
    else:
        run = RunDir.open(folder)
    changed = run.differences(request.manifest())
    if changed and not overwrite:
        raise EvditError(
            f"{folder} was made by another command: " + "; ".join(changed),
            where=str(run.path / RUN_FILE),
            next_steps=["another -o", "--overwrite"],
        )
    if overwrite:
        begin_anew(run, request)
    return run


def begin_anew(run: RunDir, request: Request) -> None:
    """Remove the videos and receipts of a run, and let it be the run of `request`.

    Raises EvditError where another process is at work in it.
    """
    run.lock.take()
    for output in run.manifest["outputs"].values():
        video = run.inside(output["path"])
        video.unlink(missing_ok=True)
        video.with_suffix(".json").unlink(missing_ok=True)
    (run.path / RECEIPT_FILE).unlink(missing_ok=True)
    run.manifest = request.manifest()
    run.save()


def waiting(run: RunDir, clips: Sequence[Clip]) -> list[Clip]:
    """The clips whose video or receipt is not yet in the run, in order."""
    done = {output["path"] for output in run.manifest["outputs"].values()}
    return [clip for clip in clips if not (clip.path.name in done and clip.path.exists() and clip.sidecar.exists())]


def note_finished(run: RunDir, clip: Clip) -> None:
    """Write into run.json that a clip and its receipt are on the disk, and add it to the run's own receipt."""
    run.add_output(f"video {clip.path.stem}", clip.path.name)
    whole = run.path / RECEIPT_FILE
    made = replace(Receipt.read(clip.sidecar), asked=run.manifest["values"], output=None)
    (Receipt.read(whole).joined(made) if whole.exists() else made).write(whole)
