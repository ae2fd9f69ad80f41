"""The reader of safetensors files: what is none, what a file must hold, and where each tensor's bytes stand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from vdit_cli.artifacts.tensors import Stored, opened, places, stored
from vdit_cli.errors import ENVIRONMENT, EvditError

DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.complex64: "C64",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all examples write into."""
    return tmp_path_factory.mktemp("tensors")


@given(
    forms=st.dictionaries(
        st.text("ab.", min_size=1, max_size=3),
        st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_the_places_of_tensors_are_where_their_bytes_are(folder: Path, forms: dict[str, Any], metadata: dict[str, str]):
    """Each type and shape, empty ones too, against the bytes of the tensor itself."""
    tensors = {
        name: (torch.arange(1 + torch.Size(shape).numel())[1:] % 7).to(dtype).reshape(shape)
        for name, (dtype, shape) in forms.items()
    }
    file = folder / "places.safetensors"
    file.write_bytes(save(tensors, metadata))
    content = file.read_bytes()
    found = {name: (each, content[at : at + each.bytes]) for name, each, at in places(file)}
    own = {
        name: (Stored(DTYPES[each.dtype], tuple(each.shape)), each.flatten().view(torch.uint8).numpy().tobytes())
        for name, each in tensors.items()
    }
    assert found == own


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of two tensors."""
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def written(content: bytes) -> Callable[[Path], Any]:
    """What writes this content."""
    return lambda path: path.write_bytes(content)


def headed(header: bytes) -> Callable[[Path], Any]:
    """What writes a file of this header."""
    return written(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is missing"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.mkdir(), "no regular file"),
        (written(b""), "header too small (0 bytes)"),
        (written(b"\x80\x04}q\x00."), "is damaged"),
        (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a git-lfs pointer"),
        (written(b"\xff" * 100), "header too large"),
        (headed(b"[" * 100_000), "invalid JSON in header"),
        (headed(b'{"a":' * 100_000), "is damaged"),
        (headed(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'), "is damaged"),
        (headed(b'{"a": {"dtype": "F32", "shape": [2305843009213693952], "data_offsets": [0, 0]}}'), "is damaged"),
    ],
)
def test_what_is_no_such_file_is_told(tmp_path: Path, make: Callable[[Path], Any], words: str):
    """Exit 3, with the file."""
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(EvditError) as caught:
        opened(path)
    assert words in caught.value.what and str(path) in caught.value.what
    assert (caught.value.exit_code, caught.value.where) == (ENVIRONMENT, str(path))


def test_a_file_cut_anywhere_is_damaged(file: Path):
    """By each of its bytes, and by one that is too many."""
    whole = file.read_bytes()
    for content in (*(whole[:length] for length in range(len(whole))), whole + b"\0"):
        file.write_bytes(content)
        with pytest.raises(EvditError, match=r"is damaged: .* bytes\)"):
            opened(file)


@pytest.mark.parametrize(
    ("name", "form", "words"),
    [
        ("c", Stored("float", (1,)), "it holds no c"),
        ("a", Stored("float", (2, 4)), "a is F32 [2, 3], not float [2, 4]"),
        ("a", Stored("float", (-1,)), "a is F32 [2, 3], not float [any]"),
        ("a", Stored("U8", (2, 3)), "a is F32 [2, 3], not U8 [2, 3]"),
        ("b", Stored("float", (4,)), "b is U8 [4], not float [4]"),
    ],
)
def test_a_tensor_of_another_form_is_told(file: Path, name: str, form: Stored, words: str):
    """Its name, what it is and what it must be, before it is read."""
    with pytest.raises(EvditError) as caught:
        opened(file, wanted={name: form})
    assert words in caught.value.what


def test_tensors_of_the_wanted_form_are_read(file: Path):
    """Any size where none is asked; others may stand beside."""
    with opened(file, "pt", wanted={"a": Stored("float", (-1, 3))}) as found:
        assert torch.equal(found.get_tensor("a"), torch.ones(2, 3))
        assert stored(found) == {"a": Stored("F32", (2, 3)), "b": Stored("U8", (4,))}
