"""Whole or not there: replacing, full disks, unwritable places, folders."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from vdit_cli.artifacts import atomic
from vdit_cli.artifacts.atomic import check_writable, free_name, replacing, replacing_together, write_json, write_text
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


def test_a_link_is_written_through(tmp_path: Path):
    """To a file, to a folder and to nothing yet: the link stays one."""
    (tmp_path / "far").mkdir()
    for name, target in (("a.txt", "far/b.txt"), ("new.txt", "far/c.txt")):
        (tmp_path / name).symlink_to(tmp_path / target)
    write_text(tmp_path / "far" / "b.txt", "old")
    for name, target in (("a.txt", "far/b.txt"), ("new.txt", "far/c.txt")):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink() and (tmp_path / target).read_text(encoding="utf-8") == "new"
    (tmp_path / "out").symlink_to(tmp_path / "far" / "frames")
    (tmp_path / "far" / "frames").mkdir()
    with replacing(tmp_path / "out") as beside:
        write_text(beside / "0.png", "x")
    assert (tmp_path / "out").is_symlink() and os.listdir(tmp_path / "far" / "frames") == ["0.png"]
    assert sorted(os.listdir(tmp_path / "far")) == ["b.txt", "c.txt", "frames"]


def test_a_file_that_is_a_mount_point_gets_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A rename onto one is refused as busy: what it holds is written anew, and it keeps its name."""
    write_text(tmp_path / "a.txt", "old")
    before = (tmp_path / "a.txt").stat().st_ino

    def busy(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", busy)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new"
    assert (tmp_path / "a.txt").stat().st_ino == before and os.listdir(tmp_path) == ["a.txt"]


def test_a_mount_point_on_a_full_disk_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was there is written back."""
    write_text(tmp_path / "a.txt", "old")
    real = shutil.copyfile

    def full(source: Path, target: Path) -> None:
        if target == tmp_path / "a.txt" and "new" in source.read_text(encoding="utf-8"):
            target.write_text("ne", encoding="utf-8")
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    def busy(source: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", busy)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(EvditError, match="the disk is full: .*what stood there before is untouched"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_what_belongs_together_takes_its_place_together(tmp_path: Path):
    """A failure between the first and the second leaves both as they were."""
    for name in ("a.mp4", "a.json"):
        write_text(tmp_path / name, "old")
    with (
        pytest.raises(EvditError, match="the disk is full: .*a.json was not written"),
        replacing_together(tmp_path / "a.mp4", tmp_path / "a.json") as (video, receipt),
    ):
        write_text(video, "new")
        raise OSError(errno.ENOSPC, "No space left on device", str(receipt))
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in os.listdir(tmp_path)} == {
        "a.mp4": "old",
        "a.json": "old",
    }
    with replacing_together(tmp_path / "a.mp4", tmp_path / "a.json") as (video, receipt):
        write_text(video, "new")
        assert (tmp_path / "a.mp4").read_text(encoding="utf-8") == "old"
        write_text(receipt, "new")
    assert {(tmp_path / name).read_text(encoding="utf-8") for name in os.listdir(tmp_path)} == {"new"}


def test_an_interrupt_waits_until_everything_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C between the two renames is heard after the second."""
    real, seen = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        real(source, target)
        seen.append(Path(target).name)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), replacing_together(tmp_path / "a", tmp_path / "b") as besides:
        for beside in besides:
            beside.write_text("x", encoding="utf-8")
        monkeypatch.setattr(os, "replace", interrupted)
    assert seen == ["a", "b"] and sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_folder_that_is_kept_gets_the_new_files(tmp_path: Path):
    """Same folder, new frames over the old ones, old ones too many removed, and what is no frame left alone."""
    folder = tmp_path / "frames"
    for name in ("0.png", "1.png", "2.png", ".DS_Store"):
        write_text(folder / name, "old")
    before = folder.stat().st_ino
    with replacing_together(folder, drop=lambda file: file.suffix == ".png") as (beside,):
        for name in ("0.png", "1.png"):
            write_text(beside / name, "new")
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in os.listdir(folder)}
    assert texts == {"0.png": "new", "1.png": "new", ".DS_Store": "old"}
    assert folder.stat().st_ino == before and os.listdir(tmp_path) == ["frames"]


def test_long_names_leave_room_for_the_temporary_one(tmp_path: Path):
    """As long as the file system allows, in letters of three bytes."""
    name = "漢" * 84 + ".mp"
    assert len(name.encode()) == 255
    write_text(tmp_path / name, "x")
    assert os.listdir(tmp_path) == [name]


def test_places_are_tried_before_the_work(tmp_path: Path):
    """Too long a name, one with a zero byte, a parent that is a file, and a file system that makes no files."""
    check_writable(tmp_path / "deep" / "er" / "a.mp4")
    assert os.listdir(tmp_path) == []
    write_text(tmp_path / "file", "x")
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path / "file" / "a.mp4", Path("/proc/a.mp4")):
        with pytest.raises(EvditError, match="can't be written") as told:
            check_writable(path, where="-o that")
        assert (told.value.exit_code, told.value.where) == (2, "-o that") and str(path) in told.value.what


def test_a_free_name_is_free_and_beside_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also of the folder that one stands in, of the one above it, and of the root."""
    (tmp_path / "data" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    assert free_name(Path("x.mp4")) == Path("x.mp4") and free_name(Path("inner")) == Path("inner-2")
    assert free_name(Path(".")) == tmp_path / "data-2"
    monkeypatch.chdir("inner")
    assert free_name(Path("..")) == tmp_path / "data-2"
    assert free_name(Path("/")) == Path("/new")


def test_a_folder_where_a_file_belongs_is_named(tmp_path: Path):
    """By its own name, not by that of the temporary file."""
    place = tmp_path / "receipt.json"
    place.mkdir()
    with pytest.raises(EvditError, match="receipt.json can't be written: Is a directory") as caught:
        write_json(place, {})
    assert (caught.value.where, caught.value.exit_code) == (str(place), 2) and os.listdir(tmp_path) == ["receipt.json"]
