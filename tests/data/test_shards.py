"""Prepared clips on disk: what was written is read back by number, and what does not fit or is damaged is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_pipeline import write_pipeline, write_vae
from vdit_cli.artifacts.digest import file_digest
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import INDEX, OPEN_AT_ONCE, Clips, Skipped, open_data, write_index, write_shard
from vdit_cli.errors import USAGE, EvditError

FACTS = DataFacts("tiny", "a" * 64, "b" * 64)
SIZE = {"video_frames": 9, "height": 32, "width": 48, "fps": 8, "latent_shape": [4, 3, 4, 6]}
LATENTS = torch.arange(7 * 4 * 3 * 4 * 6, dtype=torch.float32).reshape(7, 4, 3, 4, 6)
STATES = torch.arange(1, 7 * 5 * 2 + 1, dtype=torch.float32).reshape(7, 5, 2)
LENGTHS = (1, 3, 2, 4, 1, 2, 3)
"""No caption fills its 5 places: the last one is padding in every row."""


def mask_of(lengths: tuple[int, ...]) -> torch.Tensor:
    """1 for the first `length` of 5 places."""
    return (torch.arange(5) < torch.tensor(lengths)[:, None]).long()


def write(folder: Path, parts: tuple[range, ...] = (range(3), range(3, 3), range(3, 7))) -> Clips:
    """Seven clips in shards of these numbers; a shard without clips stands for one whose sources were all skipped."""
    shards = []
    for number, part in enumerate(parts):
        rows = list(part)
        text = TextStates(STATES[rows], mask_of(LENGTHS)[rows])
        skipped = [Skipped(f"short{number}.mp4", "2 frames")]
        names = [f"{row}.mp4" for row in rows]
        captions = [f"clip {row}" for row in rows]
        shards.append(
            write_shard(folder, f"shards/{number}.safetensors", LATENTS[rows], text, names, captions, skipped)
        )
    write_index(folder, FACTS, SIZE, TextStates(STATES[:1] * 0 - 1, mask_of((2,))), shards, {"source": "videos"})
    return open_data(folder)


def test_clips_are_read_by_number_whatever_file_they_are_in(tmp_path: Path):
    """Order, repeats, captions and skipped sources; padding is zero and as long as the longest caption of all."""
    clips = write(tmp_path / "data")
    assert len(clips) == 7 and clips.facts == FACTS and clips.latent_shape == (4, 3, 4, 6)
    assert clips.captions == tuple(f"clip {row}" for row in range(7)) and clips.sources[3] == "3.mp4"
    assert [each.source for each in clips.skipped] == ["short0.mp4", "short1.mp4", "short2.mp4"]
    wanted = [6, 0, 3, 3]
    assert torch.equal(clips.latents(wanted), LATENTS[wanted])
    states, mask = clips.text(wanted)
    assert torch.equal(mask, mask_of(LENGTHS)[wanted, :4])
    assert torch.equal(states, (STATES * mask_of(LENGTHS)[..., None])[wanted, :4])
    null, null_mask = clips.null_text()
    assert torch.equal(null_mask, mask_of((2,))[:, :4]) and torch.equal(null[0, :, 0], torch.tensor([-1.0, -1, 0, 0]))
    with pytest.raises(IndexError):
        clips.latents([7])


def test_many_files_are_not_all_kept_open_and_clips_travel_to_other_processes(tmp_path: Path):
    """A shard a clip, more of them than stay open."""
    many = OPEN_AT_ONCE + 5
    clips = write(tmp_path, tuple(range(row % 7, row % 7 + 1) for row in range(many)))
    assert torch.equal(clips.latents(range(many)), LATENTS[[row % 7 for row in range(many)]])
    assert len(clips._opened) == OPEN_AT_ONCE
    assert torch.equal(pickle.loads(pickle.dumps(clips)).latents([1]), LATENTS[[1]])  # noqa: S301


def test_a_damaged_shard_is_found_when_it_is_first_needed(tmp_path: Path):
    """Not before: other clips can be read."""
    clips = write(tmp_path)
    damaged = tmp_path / "shards" / "2.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    assert torch.equal(clips.latents([0]), LATENTS[[0]])
    with pytest.raises(EvditError, match=r"2\.safetensors is damaged: its digest is"):
        clips.latents([5])
    damaged.unlink()
    with pytest.raises(EvditError, match="is gone"):
        clips.text([5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("mask"), "it holds no mask"),
        (lambda tensors: tensors.update(latents=tensors["latents"][:2]), "latents is F32 [2, 4, 3, 4, 6], not float"),
        (lambda tensors: tensors.update(latents=tensors["latents"].int()), "latents is I32"),
        (lambda tensors: tensors.update(text=tensors["text"][..., 1:]), "text is F32"),
    ],
)
def test_a_shard_that_holds_other_tensors_than_its_index_says_is_refused(tmp_path: Path, change, words: str):
    """With a right digest: fewer clips than are named, another width, another type, one that is lacking."""
    write(tmp_path)
    shard = tmp_path / "shards" / "0.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file({name: each.contiguous() for name, each in tensors.items()}, shard)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    index["shards"][0]["sha256"] = file_digest(shard)
    (tmp_path / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(EvditError) as caught:
        open_data(tmp_path).text([0])
    assert words in caught.value.what and caught.value.where == str(shard)


def test_what_is_no_data_is_refused(tmp_path: Path):
    """An empty folder, a broken index, a path that leaves the folder: exit 2, with the command that makes data."""
    with pytest.raises(EvditError, match="holds no prepared data") as told:
        open_data(tmp_path)
    assert told.value.exit_code == USAGE and "prepare-data" in told.value.next_steps[0]
    write(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    for key, value, why in (
        ("shards", [{"path": "x"}], "is missing: an index of data needs it"),
        ("schema", "evdit.data/9", "must have the schema 'evdit.data/1'"),
        ("shards", [index["shards"][0] | {"path": "../x.safetensors"}], "leaves the data folder"),
    ):
        (tmp_path / INDEX).write_text(json.dumps(index | {key: value}), encoding="utf-8")
        with pytest.raises(EvditError, match=why):
            open_data(tmp_path)


def test_a_folder_of_somebodys_is_looked_into_no_further_than_its_first_file(tmp_path: Path, monkeypatch):
    """It may be as large as a disk."""
    seen: list[Path] = []
    walk = Path.rglob

    def walked(folder: Path, pattern: str) -> Iterator[Path]:
        """What is walked, noted as it is come to."""
        for path in walk(folder, pattern):
            seen.append(path)
            yield path

    for number in range(9):
        (tmp_path / f"{number}.txt").touch()
    monkeypatch.setattr(Path, "rglob", walked)
    with pytest.raises(EvditError, match="holds no prepared data: it has no index.json"):
        open_data(tmp_path)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"vae": "c" * 64}, "VAE aaaaaaaaaaaa of tiny, not cccccccccccc of other"),
        ({"text_encoder": "c" * 64}, "text encoder bbbbbbbbbbbb of tiny, not cccccccccccc of other"),
        ({"template": "best, {prompt}"}, "prompt template '{prompt}' of tiny, not 'best, {prompt}' of other"),
        ({"negative": "bad"}, "negative prompt '' of tiny, not 'bad' of other"),
    ],
)
def test_data_of_another_model_are_refused_naming_both(tmp_path: Path, changed: dict, told: str):
    """Each part by itself; the name alone does not matter."""
    write(tmp_path)
    assert len(open_data(tmp_path, replace(FACTS, model="other"))) == 7
    with pytest.raises(EvditError) as error:
        open_data(tmp_path, replace(FACTS, model="other", **changed))
    assert told in error.value.what and error.value.exit_code == USAGE


def test_facts_of_a_model_change_with_its_parts_and_with_nothing_else(tmp_path: Path):
    """Weights, latent scale and words count; who wrote the config, and the transformer, do not."""
    folder = write_pipeline(tmp_path / "model")

    def facts() -> DataFacts:
        return DataFacts.of(open_backbone(find_source(str(folder)), device="cpu"))

    first = facts()
    assert first.model == "tiny" and len({first.vae, first.text_encoder}) == 2 and first == facts()
    config = folder / "vae" / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(content | {"_diffusers_version": "1"}), encoding="utf-8")
    assert facts() == first
    config.write_text(json.dumps(content | {"scaling_factor": 0.7}), encoding="utf-8")
    assert facts().vae != first.vae
    write_vae(folder / "vae", seed=1, scaling_factor=0.5)
    assert facts().vae != first.vae and facts().text_encoder == first.text_encoder
    words = folder / "tokenizer" / "tokenizer.json"
    words.write_text(words.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert facts().text_encoder != first.text_encoder
