"""Pictures that are no honest ones."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vdit_cli.artifacts import mp4
from vdit_cli.artifacts.video_file import read_frames, read_metadata, write_video
from vdit_cli.errors import USAGE, EvditError


def png(side: int, pixels: bytes, text: bytes = b"") -> bytes:
    """A PNG of `side` x `side`, its packed rows as given, with a compressed comment of `text`."""
    size = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = {b"IHDR": size, b"zTXt": b"Comment\0\0" + zlib.compress(text), b"IDAT": zlib.compress(pixels), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in parts.items()
    )


def gif(side: int) -> bytes:
    """A GIF of one picture that claims `side` x `side`."""
    place = struct.pack("<HHHHB", 0, 0, side, side, 0)
    palette = b"\x80\0\0\0\0\0\xff\xff\xff"
    return b"GIF89a" + struct.pack("<HH", side, side) + palette + b"," + place + b"\2\2D\1\0;"


LARGE = {
    "a.gif": (gif(60_000), "3600000000 pixels"),
    "frames": (png(60_000, b"\0"), "3600000000 pixels"),
    "smaller": (png(10_000, b"\0"), "100000000 pixels"),
    "text": (png(16, bytes(49 * 16), bytes(1 << 22)), "Decompressed data too large"),
}


def written(path: Path) -> Path:
    """The picture of LARGE that `path` is named after: its file, or the first one of its folder."""
    file = path if path.suffix else path / "00000.png"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(LARGE[path.name][0])
    return file


@pytest.mark.parametrize("name", LARGE)
def test_a_picture_that_claims_to_be_huge(tmp_path: Path, name: str, recwarn: pytest.WarningsRecorder):
    """In a few kilobytes: refused before it is decoded, with its name and nothing else said."""
    why, file = LARGE[name][1], written(tmp_path / name)
    for read in (read_frames, read_metadata):
        with pytest.raises(EvditError, match=f"{file} can't be read as pictures: .*{why}") as told:
            read(tmp_path / name)
        assert told.value.exit_code == USAGE
    assert not recwarn.list


@pytest.mark.parametrize("name", [*LARGE, "a.mp4"])
@pytest.mark.parametrize("words", [("score", "bad"), ("compare", "bad", "good", "-o", "out.gif")], ids=lambda it: it[0])
def test_commands_that_read_videos_name_it(tmp_path: Path, name: str, words: tuple[str, ...], evdit):
    """With exit 2; nothing is written."""
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    for folder in ("bad", "good"):
        (tmp_path / folder).mkdir()
    if name == "a.mp4":
        mp4.write(tmp_path / "bad" / name, frames, Fraction(8), {mp4.SIZE_TAG: "0x0"})
    else:
        written(tmp_path / "bad" / name)
    write_video(tmp_path / "good" / name.replace(".gif", ".mp4"), frames, 8)
    code, out, err = evdit(*words)
    assert (code, out) == (USAGE, "") and f"error: bad/{name}" in err and "can't be read as " in err, err
    assert not (tmp_path / "out.gif").exists()
