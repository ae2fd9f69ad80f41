"""Digests: of bytes, of content in any order, of weights in any number of shards."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vdit_cli.artifacts.digest import content_digest, file_digest, weights_digest
from vdit_cli.errors import EvditError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16), "c": np.int64([[7]])}


def test_of_a_file(tmp_path: Path):
    """The SHA-256 of its bytes."""
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert file_digest(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_of_content_whatever_the_order(content: dict):
    """The order of keys decides nothing."""
    assert content_digest(content) == content_digest(dict(reversed(content.items())))


def test_of_content_is_canonical_json():
    """By hand, for one value; NaN is refused."""
    assert content_digest({"b": [1, "é"], "a": None}) == hashlib.sha256('{"a":null,"b":[1,"é"]}'.encode()).hexdigest()
    with pytest.raises(ValueError):
        content_digest([float("nan")])


def test_of_weights_is_independent_of_shards(tmp_path: Path):
    """One file, two files, other metadata: one digest; another value, name, shape or dtype: another."""
    parts = {"one": [TENSORS], "two": [{"c": TENSORS["c"], "a": TENSORS["a"]}, {"b": TENSORS["b"]}]}
    for folder, shards in parts.items():
        (tmp_path / folder).mkdir()
        for index, shard in enumerate(shards):
            save_file(shard, tmp_path / folder / f"model-{index}.safetensors", metadata={"from": folder})
    digest = weights_digest([tmp_path / "one" / "model-0.safetensors"])
    assert weights_digest((tmp_path / "two").iterdir()) == digest
    changed = [{"a": TENSORS["a"] + 1}, {"a": TENSORS["a"].T.copy()}, {"a": TENSORS["a"].view(np.int32)}]
    seen = {digest}
    for index, change in enumerate(changed):
        save_file({**TENSORS, **change}, tmp_path / f"{index}.safetensors")
        seen.add(weights_digest([tmp_path / f"{index}.safetensors"]))
    assert len(seen) == 4


def test_damaged_weights_are_named(tmp_path: Path):
    """Missing, cut short anywhere, not safetensors, a tensor that stands twice: exit 3."""
    with pytest.raises(EvditError, match="no weights are in no file") as told:
        weights_digest([])
    assert told.value.exit_code == 3
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    whole = file.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(EvditError, match="damaged") as told:
            weights_digest([file])
        assert told.value.exit_code == 3
    file.write_bytes(b"\x20" + b"\0" * 7 + b"x" * 40)
    with pytest.raises(EvditError, match="invalid JSON in header"):
        weights_digest([file])
    file.write_bytes(whole)
    other = tmp_path / "other.safetensors"
    other.write_bytes(whole)
    with pytest.raises(EvditError, match="stands in"):
        weights_digest([file, other])
