"""Whole or not there: replacing, full disks, unwritable places, folders."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from vdit_cli.artifacts import atomic
from vdit_cli.artifacts.atomic import remove_leftovers, replacing, write_json, write_text
from vdit_cli.errors import EvditError


def test_a_file_is_replaced_whole(tmp_path: Path):
    """The temporary file has the suffix, lies beside, and is gone afterwards."""
    target = tmp_path / "new" / "a.json"
    write_text(target, "é\n")
    with replacing(target) as beside:
        assert beside.parent == target.parent and beside.suffix == ".json"
        beside.write_text("later", encoding="utf-8")
        assert target.read_bytes() == "é\n".encode()
    assert target.read_text(encoding="utf-8") == "later"
    assert os.listdir(target.parent) == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_after_an_error_nothing_has_changed(tmp_path: Path, error: BaseException):
    """What stood there stands there, and no temporary file is left."""
    target = tmp_path / "a.txt"
    write_text(target, "before")
    with pytest.raises(type(error)), replacing(target) as beside:
        beside.write_text("half", encoding="utf-8")
        raise error
    assert target.read_text(encoding="utf-8") == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_whole(tmp_path: Path):
    """The old folder's files do not stay."""
    for name in ("old", "new"):
        with replacing(tmp_path / "frames") as beside:
            beside.mkdir()
            write_text(beside / name, name)
    assert os.listdir(tmp_path) == ["frames"] and os.listdir(tmp_path / "frames") == ["new"]


@pytest.mark.parametrize(("number", "exit_code"), [(errno.ENOSPC, 1), (errno.EACCES, 2), (errno.EROFS, 2)])
def test_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, exit_code: int):
    """A full disk is exit 1, an unwritable place exit 2; both say which file and leave nothing."""

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", refuse)
    with pytest.raises(EvditError) as told:
        write_text(tmp_path / "a.txt", "x")
    assert told.value.exit_code == exit_code and "a.txt" in told.value.what and told.value.next_steps
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_a_folder(tmp_path: Path):
    """A parent that is a file is a usage error."""
    write_text(tmp_path / "a", "x")
    with pytest.raises(EvditError) as told:
        write_text(tmp_path / "a" / "b.txt", "x")
    assert told.value.exit_code == 2


def test_json_has_no_nan(tmp_path: Path):
    """NaN is not JSON: nothing is written."""
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert os.listdir(tmp_path) == []
    write_json(tmp_path / "a.json", {"x": "漢"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": "漢"}


def test_a_folder_that_stepped_aside_is_put_back(tmp_path: Path):
    """Killed between the two renames, only the old folder is there; killed after them, both are."""
    write_text(tmp_path / ".frames.0123abcd.old" / "0.png", "old")
    write_text(tmp_path / ".frames.0123abcd" / "0.png", "half")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["frames"] and (tmp_path / "frames" / "0.png").read_text(encoding="utf-8") == "old"
    write_text(tmp_path / ".frames.0123abcd.old" / "0.png", "older")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["frames"] and (tmp_path / "frames" / "0.png").read_text(encoding="utf-8") == "old"
