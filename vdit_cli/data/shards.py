"""Prepared clips on disk: safetensors shards and an index, and `Clips`, which reads them for training.

A data folder holds `index.json` (schema `evdit.data/1`), `null.safetensors` (states of the negative prompt) and shards
of a few clips each; nothing but the clips asked for is held in memory.
Letters: B batch, C channels, F latent frames, h, w latent height and width, L text tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdit_cli.artifacts.atomic import free_name, replacing, write_json
from vdit_cli.artifacts.digest import file_digest
from vdit_cli.artifacts.run_dir import RunDir, is_free
from vdit_cli.artifacts.tensors import Stored, opened
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.tensor_file import write_tensors
from vdit_cli.data.facts import DataFacts
from vdit_cli.errors import EvditError, quoted
from vdit_cli.reader import Count, Index, read

SCHEMA = "evdit.data/1"
INDEX, NULL, SHARDS = "index.json", "null.safetensors", "shards"
OPEN_AT_ONCE = 64


@dataclass(frozen=True)
class Skipped:
    """A clip of the source that was left out, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """One file of clips: its name in the folder, its digest, and the source and caption of each clip in order.

    `text_length` is the most text tokens of a clip in it.
    """

    path: str
    sha256: str
    sources: tuple[str, ...]
    captions: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    text_length: Index = 0

    def content(self) -> dict[str, Any]:
        """The shard as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class StoredSize:
    """What every clip has; `latent_shape` is (C, F, h, w)."""

    video_frames: Count
    height: Count
    width: Count
    fps: Count
    latent_shape: tuple[Count, Count, Count, Count]


@dataclass(frozen=True)
class StoredIndex:
    """The keys of `index.json`, and their types."""

    made_by: DataFacts
    size: StoredSize
    clips: Index
    text_length: Index
    text_width: Count
    settings: dict[str, Any]
    null: Shard
    shards: tuple[Shard, ...]

    def __post_init__(self) -> None:
        """Refuse files that lie elsewhere, and shards whose clips are not all captioned."""
        for shard in (*self.shards, self.null):
            if Path(shard.path).is_absolute() or ".." in Path(shard.path).parts:
                raise ValueError(f"{shard.path!r} leaves the data folder")
            if len(shard.sources) != len(shard.captions):
                raise ValueError(f"{shard.path} has {len(shard.sources)} clips and {len(shard.captions)} captions")


def write_shard(
    folder: Path,
    path: str,
    latents: Tensor,
    text: TextStates,
    sources: Sequence[str],
    captions: Sequence[str],
    skipped: Sequence[Skipped] = (),
) -> Shard:
    """Write clips to the file `path` of `folder`: latents (B, C, F, h, w), text states and mask, whole or not at all.

    States of padding are set to zero. A shard whose clips were all skipped has no file. Raises EvditError for a full
    disk (1) or an unwritable folder (2).
    """
    if not len(latents) == len(text.states_BLC) == len(sources) == len(captions):
        raise ValueError(f"{len(latents)} latents, {len(text.states_BLC)} texts, {len(sources)} sources")
    mask = text.mask_BL.cpu().to(torch.uint8)
    length = int(mask.any(dim=0).nonzero().max()) + 1 if mask.any() else 0
    if not len(latents):
        return Shard(path, "", (), (), tuple(skipped))
    states = text.states_BLC.cpu() * mask[..., None]
    tensors = {
        "latents": latents.cpu().contiguous(),
        "text": states[:, :length].contiguous(),
        "mask": mask[:, :length].contiguous(),
    }
    with replacing(folder / path) as beside:
        write_tensors(tensors, beside, {"schema": SCHEMA})
        digest = file_digest(beside)
    return Shard(path, digest, tuple(sources), tuple(captions), tuple(skipped), length)


def write_index(
    folder: Path,
    facts: DataFacts,
    size: Mapping[str, Any],
    null_text: TextStates,
    shards: Sequence[Shard],
    settings: Mapping[str, Any],
) -> None:
    """Write the null states and, last, `index.json`: from then on the folder holds data.

    `size` says video_frames, height, width, fps and latent_shape (C, F, h, w).
    """
    null = write_shard(folder, NULL, torch.zeros(1, 1), null_text, [""], [facts.negative])
    content = {
        "schema": SCHEMA,
        "made_by": asdict(facts),
        "size": dict(size),
        "clips": sum(len(shard.sources) for shard in shards),
        "text_length": max([null.text_length, *(shard.text_length for shard in shards)]),
        "text_width": null_text.states_BLC.shape[-1],
        "settings": dict(settings),
        "null": null.content(),
        "shards": [shard.content() for shard in shards],
    }
    write_json(folder / INDEX, content)


class Clips:
    """Prepared clips by number, in a fixed order, read as they are asked for; each file is checked when first opened.

    `facts` says what made them; `latent_shape` is (C, F, h, w), `text_length` L, the same for every batch.
    """

    def __init__(self, folder: Path, index: StoredIndex) -> None:
        self.folder = folder
        self.facts = index.made_by
        self.latent_shape = index.size.latent_shape
        self.size: dict[str, Any] = {**asdict(index.size), "latent_shape": list(self.latent_shape)}
        self.text_length = index.text_length
        self.text_width = index.text_width
        self.settings = index.settings
        every, self.null = index.shards, index.null
        self.shards = tuple(shard for shard in every if shard.sources)
        self.sources = tuple(source for shard in every for source in shard.sources)
        self.captions = tuple(caption for shard in every for caption in shard.captions)
        self.skipped = tuple(skip for shard in every for skip in shard.skipped)
        self.starts = [0, *accumulate(len(shard.sources) for shard in self.shards)]
        self._opened: OrderedDict[str, Any] = OrderedDict()
        self._checked: set[str] = set()

    def __len__(self) -> int:
        return len(self.sources)

    def __getstate__(self) -> dict[str, Any]:
        # Open files can't travel to another process; it opens its own.
        return {**self.__dict__, "_opened": OrderedDict()}

    def latents(self, indices: Sequence[int]) -> Tensor:
        """Scaled latents of the clips with these numbers, (B, C, F, h, w) float32. Raises IndexError, EvditError."""
        return torch.stack([self._rows(index, "latents").float() for index in indices])

    def text(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States (B, L, C) of their captions, as they were stored, and mask (B, L), 1 a token and 0 padding."""
        return self._padded([(self._rows(index, "text"), self._rows(index, "mask")) for index in indices])

    def null_text(self) -> tuple[Tensor, Tensor]:
        """States (1, L, C) and mask (1, L) of the negative prompt, for classifier-free guidance."""
        opened = self._open(self.null)
        return self._padded([(opened.get_tensor("text")[0], opened.get_tensor("mask")[0])])

    def _padded(self, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """All rows at the length of the longest text of the data, so that no batch depends on what else is in it."""
        states = rows[0][0].new_zeros(len(rows), self.text_length, self.text_width)
        mask = torch.zeros(len(rows), self.text_length, dtype=torch.int64)
        for row, (own_states, own_mask) in enumerate(rows):
            states[row, : len(own_states)] = own_states
            mask[row, : len(own_mask)] = own_mask
        return states, mask

    def _rows(self, index: int, key: str) -> Tensor:
        """One clip's tensor, read from its file alone."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        place = bisect_right(self.starts, index) - 1
        return self._open(self.shards[place]).get_slice(key)[index - self.starts[place]]

    def _open(self, shard: Shard) -> Any:
        """The shard's file, opened; its digest is compared when it is opened for the first time."""
        if shard.path in self._opened:
            self._opened.move_to_end(shard.path)
            return self._opened[shard.path]
        path = self.folder / shard.path
        if shard.path not in self._checked:
            self._check(path, shard.sha256)
            self._checked.add(shard.path)
        self._opened[shard.path] = opened(path, "pt", wanted=self._wanted(shard))
        if len(self._opened) > OPEN_AT_ONCE:
            self._opened.popitem(last=False)
        return self._opened[shard.path]

    def _wanted(self, shard: Shard) -> dict[str, Stored]:
        """The tensors that a shard must hold; the null states have no latents."""
        clips = len(shard.sources)
        latents = {} if shard is self.null else {"latents": Stored("float", (clips, *self.latent_shape))}
        text = Stored("float", (clips, shard.text_length, self.text_width))
        return {**latents, "text": text, "mask": Stored("U8", (clips, shard.text_length))}

    def _check(self, path: Path, sha256: str) -> None:
        again = [
            f"the evdit prepare-data command of {self.folder / 'run.json'} again: it makes what is damaged or lost"
        ]
        if not path.is_file():
            raise EvditError(f"{path} is gone, though {INDEX} names it", where=str(self.folder), next_steps=again)
        found = file_digest(path)
        if found != sha256:
            raise EvditError(
                f"{path} is damaged: its digest is {found[:12]}, {INDEX} says {sha256[:12]}",
                where=str(path),
                next_steps=again,
            )


def open_data(folder: Path | str, wanted: DataFacts | None = None) -> Clips:
    """The encoded clips of the data folder `folder`; with `wanted` they must be made by that model's parts.

    Raises EvditError (exit 2) for a folder without finished data, a damaged index, or data of another model.
    """
    folder = Path(folder)
    if not (folder / INDEX).exists():
        run = RunDir.open(folder) if (folder / "run.json").is_file() else None
        is_other = run is not None and run.manifest["command"] != "prepare-data"
        state = run.state() if run and not is_other and not run.is_done() else None
        why = "it has no index.json" if state is None else f"its run is {state}, not done"
        why = f"it is a run of evdit {run.manifest['command']}" if run and is_other else why
        place = folder if state is None and is_free(folder) else free_name(folder)
        steps = [f"evdit prepare-data --source shapes -o {quoted(place)}"]
        if state is not None:
            steps.insert(0, f"the command of {folder / 'run.json'} again, which goes on")
        raise EvditError(
            f"{folder} holds no prepared data: {why}",
            where=f"--data {folder}",
            next_steps=steps,
        )
    clips = Clips(folder, read(StoredIndex, folder / INDEX, "index of data", SCHEMA))
    if wanted is not None:
        clips.facts.check(wanted, str(folder))
    return clips
