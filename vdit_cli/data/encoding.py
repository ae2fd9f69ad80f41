"""Clips on their way into shards: a few at a time through the VAE, their captions through the text encoder.

Shard n holds clips n K to (n + 1) K of the source and does not depend on the others. Beside a finished one stands its
record, a JSON file with its digest. Letters: B clips, C channels, F latent frames, h, w latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.digest import content_digest, file_digest
from vdit_cli.backbones.base import Backbone, TextStates, as_read, cut_of
from vdit_cli.data.shards import SHARDS, Shard, write_shard
from vdit_cli.data.sources import Part, Source
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.reader import read_object, shaped
from vdit_cli.sampling.peak import out_of_memory_told

RECORD = "evdit.data-shard/1"
TEXT_CHUNK = 32
"""Captions encoded at once."""


@dataclass(frozen=True)
class Made:
    """A finished shard, and how many of its captions are longer than the text encoder reads."""

    shard: Shard
    cut: int


@dataclass(frozen=True)
class Making:
    """The shards of `clips` clips in `folder`, each of `shard_clips`; `batch` clips go through the VAE at once."""

    backbone: Backbone
    source: Source
    folder: Path
    clips: int
    shard_clips: int
    batch: int

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(-(-self.clips // self.shard_clips))

    def numbers(self, shard: int) -> range:
        """The numbers of the clips in shard n."""
        return range(shard * self.shard_clips, min(self.clips, (shard + 1) * self.shard_clips))

    def path(self, shard: int) -> str:
        """The file of shard n in the folder."""
        return f"{SHARDS}/{shard:06d}.safetensors"

    def record_path(self, shard: int) -> str:
        """The file of its record."""
        return f"{SHARDS}/{shard:06d}.json"

    def made(self, shard: int) -> Made | None:
        """What a finished shard holds; None where it or its record is missing or damaged: it is made again."""
        try:
            told = read_object(Made, self.folder / self.record_path(shard), "record of a shard", RECORD)
        except EvditError:
            return None
        if told.pop("digest", None) != content_digest(told):
            return None
        made = shaped(Made, told, self.record_path(shard), "record of a shard", is_open=True)
        path = self.folder / self.path(shard)
        is_its_own = made.shard.path == self.path(shard) and len(made.shard.sources) == len(self.numbers(shard))
        return made if is_its_own and path.is_file() and file_digest(path) == made.shard.sha256 else None

    def make(self, shards: Iterable[int], goes_on: Callable[[int], bool]) -> bool:
        """Make these shards, telling `goes_on` the clips of each batch; returns False, and leaves, when it does.

        VAE and text encoder must be resident. One shard is written while the next one is encoded. Raises EvditError: 1
        for a full disk or latents that are not finite, 4 for too little memory.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            writing: Future[None] | None = None
            for shard in shards:
                part = self.source.part(self.numbers(shard))
                encoded = self.encoded(part, goes_on)
                if writing is not None:
                    writing.result()
                if encoded is None:
                    return False
                writing = writer.submit(self.write, shard, part, *encoded)
            if writing is not None:
                writing.result()
        return True

    def encoded(self, part: Part, goes_on: Callable[[int], bool]) -> tuple[Tensor, TextStates] | None:
        """Latents (B, C, F, h, w) and text states of a part, on the CPU; None where the person asked to stop.

        Latents are the posterior's mean [ours: a sample is the other way].
        """
        latents: list[Tensor] = []
        for start in range(0, len(part.names), self.batch):
            stop = min(start + self.batch, len(part.names))
            with out_of_memory_told("encode the clips", ["--set prepare_data.batch=1", "--device cpu"]):
                latents.append(self.backbone.encode_video(part.pixels(start, stop)))
            if not goes_on(stop - start):
                return None
        # The device may still be at work on the latents while the captions are taken apart.
        text = self.text([as_read(self.backbone, words) for words in part.captions])
        latents_BCFhw = torch.cat(latents).cpu()
        if not bool(latents_BCFhw.isfinite().all()):
            raise EvditError(
                f"latents of the clips {part.names[0]} to {part.names[-1]} are not finite numbers, in "
                f"{str(self.backbone.dtype).removeprefix('torch.')}",
                next_steps=["--dtype float32 and a new folder with -o"],
                exit_code=FAILED,
            )
        return latents_BCFhw, text

    def text(self, texts: Sequence[str]) -> TextStates:
        """States (B, L, C) and mask of texts as they are given, in the model's numbers, on the CPU."""
        with out_of_memory_told("read the captions", ["--device cpu"]):
            chunks = [self.backbone.encode_text(texts[i : i + TEXT_CHUNK]) for i in range(0, len(texts), TEXT_CHUNK)]
        return joined_text([chunk.to("cpu", self.backbone.dtype) for chunk in chunks])

    def write(self, shard: int, part: Part, latents_BCFhw: Tensor, text: TextStates) -> None:
        """Write shard n, then its record. Raises EvditError as `write_shard` does."""
        cut = sum(cut_of(self.backbone, as_read(self.backbone, words)) is not None for words in part.captions)
        made = write_shard(self.folder, self.path(shard), latents_BCFhw, text, part.names, part.captions)
        content = {"schema": RECORD, "shard": made.content(), "cut": cut}
        write_json(self.folder / self.record_path(shard), {**content, "digest": content_digest(content)})


def joined_text(parts: Sequence[TextStates]) -> TextStates:
    """Text states one after the other, padded to the longest of them."""
    length = max(part.mask_BL.shape[1] for part in parts)
    pads = [length - part.mask_BL.shape[1] for part in parts]
    states = [torch.nn.functional.pad(part.states_BLC, (0, 0, 0, pad)) for part, pad in zip(parts, pads, strict=True)]
    masks = [torch.nn.functional.pad(part.mask_BL, (0, pad)) for part, pad in zip(parts, pads, strict=True)]
    return TextStates(torch.cat(states), torch.cat(masks))
