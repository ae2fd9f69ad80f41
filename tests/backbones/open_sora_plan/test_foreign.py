"""Folders that others wrote: what is safe to read is read, and what is not is named, with a line to paste."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from tests.backbones.open_sora_plan.vocabulary import vocabulary
from tests.tiny_pipeline import WORDS, copied, write_transformer
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.backbones.open_sora_plan.foreign import other_weights
from vdit_cli.backbones.open_sora_plan.text import read_tokenizer
from vdit_cli.errors import ENVIRONMENT, EvditError

WHOLE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer's folder."""
    folder = tmp_path_factory.mktemp("stored") / "transformer"
    write_transformer(folder)
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return copied(stored, tmp_path / "transformer")


def split(folder: Path, count: int = 2) -> list[Path]:
    """The weights of a folder in so many shards without an index, in place of the whole file."""
    weights = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    names = [f"diffusion_pytorch_model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        save_file(dict(list(weights.items())[number::count]), folder / name)
    return [folder / name for name in names]


def test_a_variant_and_bare_shards_are_read(folder: Path):
    """The same weights by their digest; a stray file beside them is none."""
    digest = weights_digest([folder / WHOLE])
    (folder / WHOLE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    (folder / "junk.safetensors").write_bytes(b"junk")
    assert loading.has_weights(folder) and weights_digest(loading.weight_files(folder)) == digest
    (folder / "diffusion_pytorch_model.fp16.safetensors").rename(folder / WHOLE)
    shards = split(folder)
    assert loading.weight_files(folder) == shards and weights_digest(shards) == digest


def test_the_usual_name_comes_first(folder: Path):
    """With a variant beside it nothing changes."""
    (folder / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"other")
    assert loading.weight_files(folder) == [folder / WHOLE]


def test_what_is_not_whole_or_not_clear_is_named(folder: Path):
    """A shard that is lacking; two variants."""
    split(folder, 3)[1].unlink()
    with pytest.raises(EvditError, match="has 2 of the 3 files of its weights, diffusion_pytorch_model-00001") as told:
        loading.weight_files(folder)
    assert (told.value.next_steps, told.value.exit_code) == (("bring the others",), ENVIRONMENT)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    for name in ("fp16", "bf16"):
        (folder / f"diffusion_pytorch_model.{name}.safetensors").write_bytes(b"x")
    with pytest.raises(EvditError, match="weights more than once: .*bf16.safetensors, .*fp16.safetensors") as told:
        loading.weight_files(folder)
    assert told.value.exit_code == ENVIRONMENT and told.value.where == str(folder)


@pytest.mark.parametrize("inner", [None, "state_dict"])
def test_pickled_weights_are_named_with_a_line_that_converts_them(folder: Path, inner: str | None):
    """As it is pasted into a shell: what it writes are the weights, and no code in the file is run by it."""
    digest, weights = weights_digest([folder / WHOLE]), load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    torch.save({inner: weights} if inner else weights, folder / "check point's.ckpt")
    with pytest.raises(EvditError, match="holds check point's.ckpt, which may hold code, and no diffusion_") as told:
        loading.weight_files(folder)
    (step,) = told.value.next_steps
    assert shlex.split(step)[:2] == ["python", "-c"] and "weights_only=True" in step
    exec(shlex.split(step)[2])
    assert weights_digest(loading.weight_files(folder)) == digest


def test_an_empty_folder_is_told_as_ever(tmp_path: Path):
    """Nothing is there instead."""
    assert other_weights(tmp_path) == []
    with pytest.raises(EvditError, match=f"{WHOLE} is missing, and no {WHOLE}.index.json is beside it"):
        loading.weight_files(tmp_path)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A vocabulary in sentencepiece's own form."""
    return vocabulary(tmp_path_factory.mktemp("words"), [" ".join(WORDS)])


def test_a_model_type_in_the_tokenizers_settings_is_left_out(words: bytes, tmp_path: Path):
    """All else of them counts, and the words are those without settings; the folder stays as it was."""
    (tmp_path / "spiece.model").write_bytes(words)
    settings = tmp_path / "tokenizer_config.json"
    plain = read_tokenizer(tmp_path)("a small red circle")["input_ids"]
    settings.write_text(json.dumps({"model_type": "mt5", "extra_ids": 0, "model_max_length": 9}), encoding="utf-8")
    before = settings.read_bytes()
    found = read_tokenizer(tmp_path)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=words)
    assert found("a small red circle")["input_ids"] == plain == [*pieces.encode("a small red circle"), pieces.eos_id()]
    assert found.model_max_length == 9 and settings.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spiece.model", "tokenizer_config.json"]


def test_a_pointer_of_git_lfs_is_called_one(tmp_path: Path):
    """Not a vocabulary of tiktoken, which a package would read."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:ef78\nsize 4309802\n"
    (tmp_path / "spiece.model").write_bytes(pointer)
    with pytest.raises(EvditError, match="spiece.model is a git-lfs pointer: the vocabulary itself was not") as told:
        read_tokenizer(tmp_path)
    assert told.value.next_steps[0] == f"git -C {tmp_path} lfs pull" and "tiktoken" not in told.value.text()


def test_a_tokenizer_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is there: fetching it again would not help."""
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    refused = PermissionError(13, os.strerror(13), str(tmp_path / "tokenizer.json"))

    def refuse(*given: object, **named: object) -> None:
        raise refused

    monkeypatch.setattr("vdit_cli.backbones.open_sora_plan.text.T5Tokenizer.from_pretrained", refuse)
    with pytest.raises(PermissionError):
        read_tokenizer(tmp_path)
