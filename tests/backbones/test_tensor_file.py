"""A safetensors file: equal content gives equal bytes, and safetensors reads what was written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from vdit_cli.backbones.tensor_file import write_tensors

TENSORS = {"b": torch.arange(6.0).view(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(7)}
METADATA = {
    name: f"{number} of them" for number, name in enumerate(("format", "x", "evdit.plan", "evdit.lineage", "é"))
}


def test_equal_content_gives_equal_bytes(tmp_path: Path):
    """Again and again, in another process, and whatever the order of the metadata."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom tests.backbones.test_tensor_file import *\n"
        "write_tensors(TENSORS, Path(sys.argv[1]), METADATA)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "other"], check=True, cwd=Path(__file__).parents[2])
    found = {(tmp_path / "other").read_bytes()}
    for number in range(8):
        given = dict(reversed(METADATA.items())) if number % 2 else METADATA
        write_tensors(TENSORS, tmp_path / "file", given)
        found.add((tmp_path / "file").read_bytes())
    assert len(found) == 1


def test_any_metadata_is_read_as_it_was_written(tmp_path: Path):
    """Every letter there is; the tensors too, whose places the header tells."""
    letters = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))
    for given in ({}, {"z": letters, letters[:300]: "x", "a": ""}):
        write_tensors(TENSORS, tmp_path / "file", given)
        with safe_open(tmp_path / "file", framework="pt") as opened:
            assert (opened.metadata() or {}) == given
            assert sorted(opened.keys()) == sorted(TENSORS)
            assert all(torch.equal(opened.get_tensor(name), TENSORS[name]) for name in TENSORS)
