"""The README.md of a run: evdit's own is written anew, anything else in its place is left as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vdit_cli.artifacts.run_card import MARK
from vdit_cli.artifacts.run_dir import Request, RunDir

ASKED = Request("generate", "shapes", {"seed": 1})
MEMORY = Path("/proc/self/mem")
"""A regular file whose first byte can't be read, whoever asks."""


def finished(folder: Path) -> None:
    """Go on with the run in `folder` to its end, which must be well."""
    with RunDir.resume(folder, ASKED):
        pass
    assert RunDir.open(folder).is_done()


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        os.mkfifo,
        lambda card: card.write_bytes(b"\xff\xfe\x00" * 9),
        lambda card: card.write_text(MARK[:-1], encoding="ascii"),
        lambda card: card.symlink_to("gone"),
        lambda card: card.symlink_to(card.name),
        pytest.param(
            lambda card: card.symlink_to(MEMORY), marks=pytest.mark.skipif(not MEMORY.exists(), reason="Linux")
        ),
    ],
)
def test_what_is_no_card_of_ours_is_left_alone(tmp_path: Path, make: Callable[[Path], object]):
    """A folder, a pipe, other bytes, a link to nothing or to what can't be read: the run is done all the same."""
    card = tmp_path / "run" / "README.md"
    with RunDir.create(tmp_path / "run", ASKED):
        pass
    card.unlink()
    make(card)
    before = card.lstat()
    finished(tmp_path / "run")
    after = card.lstat()
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    assert not (tmp_path / "run" / "gone").exists()


def test_our_card_is_written_anew(tmp_path: Path):
    """Whatever was written below its mark."""
    with RunDir.create(tmp_path / "run", ASKED):
        pass
    card = tmp_path / "run" / "README.md"
    card.write_bytes(MARK.encode("ascii") + b"\xff")
    finished(tmp_path / "run")
    assert "Made by `evdit generate`" in card.read_text(encoding="utf-8")
