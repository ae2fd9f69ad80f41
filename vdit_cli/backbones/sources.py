"""What a backbone needs to be told and to be given: its entry, its files, where a model comes from. No torch."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.digest import file_digest
from vdit_cli.artifacts.places import user_data_path
from vdit_cli.errors import ENVIRONMENT, EvditError
from vdit_cli.timing import Progress, Silent

ASSETS = Path(__file__).parent.parent / "assets"
GIGABYTE = 10**9
SUMS = "SHA256SUMS"
"""Beside embedded weights: the digest and the path of every needed file, a line each, as `sha256sum -c` reads them."""


@dataclass(frozen=True)
class NeededFile:
    """A file that a backbone loads: its path inside the weights folder and its size in bytes (0: not known)."""

    path: str
    bytes: int

    def line(self) -> str:
        """The path and its size, as a person reads them."""
        return f"{self.path} (about {size_text(self.bytes)})"


@dataclass(frozen=True)
class BackboneEntry:
    """One registered backbone: what `evdit models` shows of it, and where its code and weights are."""

    name: str
    module: str
    """The Python module whose `load(source, options)` opens it."""
    parameters: int
    """Of the transformer alone."""
    video_frames: int
    height: int
    width: int
    tokens: int
    """Length of one self-attention at the size above, text tokens included where they take part."""
    licence: str
    folder: str
    """Weights folder: below the package's assets if `is_embedded`, else below the user's data folder."""
    files: tuple[NeededFile, ...]
    is_embedded: bool = False
    hub_id: str | None = None
    text_encoder_id: str | None = None
    pipeline_class: str = ""
    """The `_class_name` in model_index.json that folders of this backbone carry."""

    @property
    def weights_folder(self) -> Path:
        """Where the weights are expected."""
        return ASSETS / self.folder if self.is_embedded else user_data_path() / self.folder

    def missing_files(self) -> list[NeededFile]:
        """The needed files that are not in the weights folder."""
        return [needed for needed in self.files if not (self.weights_folder / needed.path).is_file()]

    def damaged_files(self) -> list[NeededFile]:
        """The needed files that are in the weights folder and are not what SHA256SUMS there says; reads them whole."""
        lines = (self.weights_folder / SUMS).read_text(encoding="utf-8").splitlines()
        digests = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
        missing = self.missing_files()
        here = [needed for needed in self.files if needed not in missing]
        return [each for each in here if file_digest(self.weights_folder / each.path) != digests.get(each.path)]


@dataclass(frozen=True)
class ModelSource:
    """What `--model` turned out to mean: kind "registered" or "folder" (`folder` is set) or "hub" (`hub_id` is set)."""

    name: str
    kind: str
    module: str
    folder: Path | None = None
    hub_id: str | None = None
    entry: BackboneEntry | None = None


@dataclass(frozen=True)
class LoadOptions:
    """How to open a model; the size (pixels, pixel frames) chooses between folders made for one size each."""

    device: str = "auto"
    dtype: Any = "auto"
    text_encoder: str | None = None
    offload: str = "none"
    vae_tiling: bool = False
    checkpoint: str | None = None
    lora: tuple[str, ...] = ()
    progress: Progress = field(default_factory=Silent)
    video_frames: int | None = None
    height: int | None = None
    width: int | None = None


def size_text(size: int) -> str:
    """Bytes as "11.1 GB", "24.7 MB" or "2 kB" (powers of ten, as hubs and disks count)."""
    for unit, name in ((GIGABYTE, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{max(1, round(size / 1000))} kB"


def repair(entry: BackboneEntry) -> str:
    """What brings an embedded model's files back."""
    return f"git checkout -- {shlex.quote(str(entry.weights_folder))}  (or install the package again)"


def check_whole(entry: BackboneEntry) -> None:
    """Raise EvditError (exit 3) where a file of an embedded model is not what it was: a clone can be cut off."""
    try:
        damaged = [each.path for each in entry.damaged_files()]
    except OSError as error:
        damaged = [f"{SUMS} ({error.strerror})"]
    if damaged:
        raise EvditError(
            f"the model {entry.name} is damaged: {', '.join(damaged)} is not what it was",
            where=str(entry.weights_folder),
            next_steps=[repair(entry)],
            exit_code=ENVIRONMENT,
        )


def weights_missing(entry: BackboneEntry, missing: list[NeededFile]) -> EvditError:
    """The error for a registered backbone without its weights: which files, how large, where to put them."""
    total = size_text(sum(needed.bytes for needed in missing))
    count = "1 file" if len(missing) == 1 else f"{len(missing)} files"
    listed = "".join(f"\n    {needed.line()}" for needed in missing)
    if entry.is_embedded:
        steps = [
            repair(entry),
            f"evdit train-{entry.name} -o runs/{entry.name}  (makes them; then --model runs/{entry.name})",
            "--model FOLDER",
        ]
    else:
        steps = [f"put them into {entry.weights_folder}"]
        if entry.hub_id:
            text = f" --text-encoder {entry.text_encoder_id}" if entry.text_encoder_id else ""
            steps.append(f"--model {entry.hub_id}{text}  (fetches them)")
        steps.append("--model FOLDER")
    return EvditError(
        f"the weights of {entry.name} are not here: {count}, about {total}, registered names never download{listed}",
        where=str(entry.weights_folder),
        next_steps=steps,
        exit_code=ENVIRONMENT,
    )
