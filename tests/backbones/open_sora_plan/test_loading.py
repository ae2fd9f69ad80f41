"""Weights on disk: round trips, shards, and every fault named before anything is loaded."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from vdit_cli.backbones import tensor_file
from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.errors import ENVIRONMENT, FAILED, EvditError

CONFIG = {"_class_name": "Sequential", "other": [1, None, {"key": "Ω"}]}
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4), nn.BatchNorm1d(4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    loading.save_weights(model(), tmp_path / "model", CONFIG, metadata={"plan": "abc"})
    return tmp_path / "model"


def loaded(folder: Path, dtype: torch.dtype | None = None) -> nn.Module:
    with torch.device("meta"):
        empty = model()
    loading.load_strict(empty, folder, dtype)
    return empty


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(EvditError) as caught:
        loaded(folder)
    assert caught.value.exit_code == ENVIRONMENT
    for word in words:
        assert word in caught.value.what


def test_round_trip_with_metadata(folder: Path) -> None:
    assert_same(loaded(folder), model())
    assert loading.read_config(folder) == CONFIG
    assert {path.name for path in folder.iterdir()} == {"config.json", WEIGHTS}
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"plan": "abc", "format": "pt", "config": json.dumps(CONFIG)}
    assert loading.read_state(folder).keys() == model().state_dict().keys()
    assert loading.stored_shapes(folder)["0.weight"] == (16, 8)


def test_weights_may_be_read_by_whom_the_config_may(folder: Path) -> None:
    assert (folder / WEIGHTS).stat().st_mode == (folder / "config.json").stat().st_mode


def test_loaded_parameters_can_be_trained(folder: Path) -> None:
    network = loaded(folder)
    assert all(isinstance(value, nn.Parameter) and value.requires_grad for value in network.parameters())
    network(torch.randn(3, 8)).sum().backward()
    with torch.no_grad():
        network[0].weight.add_(1)
    assert_same(loaded(folder), model())


def test_whole_numbers_keep_their_type(folder: Path) -> None:
    loading.save_weights(model(), folder, CONFIG, dtype=torch.float16)
    stored = load_file(folder / WEIGHTS)
    assert stored["0.weight"].dtype is torch.float16
    assert stored["2.num_batches_tracked"].dtype is torch.int64
    network = loaded(folder, torch.bfloat16)
    assert network[0].weight.dtype is torch.bfloat16
    assert network[2].num_batches_tracked.dtype is torch.int64
    assert loaded(folder)[0].weight.dtype is torch.float16


def test_shards_and_back(folder: Path) -> None:
    loading.save_weights(model(1), folder, CONFIG, max_shard_bytes=300)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert {path.name for path in folder.iterdir()} == {"config.json", INDEX, *shards}
    assert index["metadata"]["total_size"] == sum(v.numel() * v.itemsize for v in model().state_dict().values())
    assert_same(loaded(folder), model(1))
    loading.save_weights(model(2), folder, CONFIG)
    assert {path.name for path in folder.iterdir()} == {"config.json", WEIGHTS}
    assert_same(loaded(folder), model(2))


def test_the_names_of_transformers_are_read(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    assert_same(loaded(folder), model())


def test_missing_unknown_and_misshapen_keys_are_named_and_counted(folder: Path) -> None:
    state = model().state_dict()
    state["1.weight"] = torch.zeros(4, 15)
    del state["0.bias"]
    for number in range(5):
        state[f"extra{number}"] = torch.zeros(1)
    save_file(state, folder / WEIGHTS)
    refused(
        folder,
        "do not fit Sequential",
        "1 missing (0.bias)",
        "5 unknown (extra0, extra1, extra2 and 2 more)",
        "1 misshapen (1.weight [4, 15] instead of [4, 16])",
    )


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_named_with_both_sizes(folder: Path, kept: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    refused(folder, str(folder / WEIGHTS), str(len(whole[:kept])))
    if kept == -1:
        refused(folder, f"file not fully covered ({len(whole) - 1} bytes)")


def test_a_file_that_grew_is_damaged(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    refused(folder, "is damaged", "file not fully covered")


@pytest.mark.parametrize("header", [b"{", b"[1, 2, 3]", b'{"a": {}}', b'{"a": {"data_offsets": "no"}}', b"\xff\xfe{}"])
def test_a_damaged_header_is_named(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    refused(folder, f"{folder / WEIGHTS} is damaged", f"({8 + len(header)} bytes)")


def test_a_header_that_only_safetensors_refuses_is_named(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    refused(folder, f"{folder / WEIGHTS} is damaged")


def test_a_pointer_of_git_lfs_is_recognised(folder: Path) -> None:
    (folder / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", encoding="utf-8"
    )
    refused(folder, "git-lfs pointer")


def test_weights_of_whole_numbers_are_refused(folder: Path) -> None:
    """They would be loaded, and nothing computed with them is anything."""
    save_file({**model().state_dict(), "1.weight": torch.zeros(4, 16, dtype=torch.int32)}, folder / WEIGHTS)
    refused(folder, "1.weight I32")


def test_missing_files_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, str(folder / WEIGHTS))
    (folder / "config.json").unlink()
    with pytest.raises(EvditError, match=r"config\.json is missing"):
        loading.read_config(folder)


@pytest.mark.parametrize(("text", "words"), [("{", "is not JSON"), ("[]", "is a JSON list"), ("", "is empty")])
def test_a_damaged_config_is_named(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(EvditError, match=words):
        loading.read_config(folder)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/tmp/x.safetensors", "a\\b.safetensors", "C:x.safetensors", "x.bin", ""]
)
def test_an_index_can_not_lead_elsewhere(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"0.weight": name}}), encoding="utf-8")
    refused(folder, INDEX, repr(name))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "weight_map is missing: an index of weights needs it"),
        ({"weight_map": []}, "weight_map is []: it must be an object"),
        ({"weight_map": {"a": 1}}, "a is 1: it must be a text"),
    ],
)
def test_a_damaged_index_is_named(folder: Path, index: dict, words: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(EvditError, match=re.escape(words)) as caught:
        loaded(folder)
    assert caught.value.exit_code == ENVIRONMENT and str(folder / INDEX) in (caught.value.where or "")


def test_a_lost_shard_is_named(folder: Path) -> None:
    loading.save_weights(model(), folder, CONFIG, max_shard_bytes=300)
    lost = sorted(folder.glob("*-00002-*"))[0]
    lost.unlink()
    refused(folder, INDEX, lost.name)


def test_a_full_disk_leaves_the_earlier_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict, path: Path, metadata: dict) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError(f"I/O error: No space left on device (os error {errno.ENOSPC})")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(EvditError, match="disk is full") as caught:
        loading.save_weights(model(3), folder, CONFIG)
    assert caught.value.exit_code == FAILED
    assert {path.name for path in folder.iterdir()} == {"config.json", WEIGHTS}
    assert_same(loaded(folder), model())
