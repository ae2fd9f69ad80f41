"""Videos on disk: round trips in every format, metadata, refusals, a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.closeness import assert_close
from vdit_cli.artifacts import mp4, stills
from vdit_cli.artifacts.video_file import check_output, read_metadata, read_video, write_video
from vdit_cli.errors import EvditError

NAMES = ["clip.mp4", "clip.gif", "clip.webp", "clip"]
METADATA = {"prompt": 'é "x"; a=b\n#c\\ 漢 [d]', "seed": "7", "masks": "1:7"}


def moving_square(count: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """A blue square that moves over red, three frames of it standing still."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = (230, 25, 25)
    for index in range(count):
        left = 4 + 3 * min(index, 5)
        frames[index, 10:30, left : left + 20] = (25, 64, 255)
    return frames


@pytest.mark.numerical
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 2), (1, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_a_round_trip(tmp_path: Path, name: str, size: tuple[int, int]):
    """Count, size, rate and pictures come back, repeated frames and odd sizes too."""
    frames = moving_square(9, *size)
    write_video(tmp_path / name, frames, 12.5, METADATA)
    again, fps = read_video(tmp_path / name)
    assert again.shape == frames.shape and again.dtype == np.uint8
    assert_close(fps, 12.5, rtol=1e-3)
    off = np.abs(again.astype(int) - frames)
    assert off.max() == 0 if name in ("clip", "clip.gif") else off.mean() < 4
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", NAMES)
def test_metadata_survives(tmp_path: Path, name: str):
    """Any text; nothing where nothing was given."""
    write_video(tmp_path / name, moving_square(), 8, METADATA)
    assert read_metadata(tmp_path / name) == METADATA
    write_video(tmp_path / name, moving_square(), 8, None, overwrite=True)
    assert read_metadata(tmp_path / name) == {}


def test_an_mp4_is_one_that_players_take(tmp_path: Path):
    """H.264 in 4:2:0, its colours told, its index at the front, a tag for each entry."""
    write_video(tmp_path / "a.mp4", moving_square(), 8, METADATA)
    command = [mp4.imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "a.mp4")]
    told = subprocess.run(command, capture_output=True, check=False).stderr.decode()
    assert "h264" in told and "yuv420p(tv, bt709, progressive)" in told and "8 fps" in told
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert mp4.read_tags(tmp_path / "a.mp4")["prompt"] == METADATA["prompt"]


def test_flat_colours_come_back_within_a_few_levels(tmp_path: Path):
    """A wrong colour matrix would be off by ten and more."""
    colours = [(230, 25, 25), (25, 179, 38), (25, 64, 255), (255, 230, 25), (255, 255, 255), (13, 18, 89), (0, 0, 0)]
    for colour in colours:
        frames = np.full((2, 32, 32, 3), colour, np.uint8)
        write_video(tmp_path / "a.mp4", frames, 8, overwrite=True)
        assert np.abs(read_video(tmp_path / "a.mp4")[0].astype(int) - frames).max() <= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """Exit 1, no temporary file, the older video untouched."""
    write_video(tmp_path / name, moving_square(3), 8)
    before = read_video(tmp_path / name)[0]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for module, call in [(mp4, "write"), (stills, "write_gif"), (stills, "write_webp"), (stills.Image.Image, "save")]:
        monkeypatch.setattr(module, call, full)
    with pytest.raises(EvditError, match="disk is full") as told:
        write_video(tmp_path / name, moving_square(), 8, overwrite=True)
    assert told.value.exit_code == 1
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [name] and np.array_equal(read_video(tmp_path / name)[0], before)


def test_ffmpeg_on_a_full_device(tmp_path: Path):
    """ffmpeg's own words become the error of a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as told:
        mp4.write(Path("/dev/full"), moving_square(), 8, {})
    assert told.value.errno == errno.ENOSPC


def test_what_is_refused_before_any_work(tmp_path: Path):
    """Each with exit 2 and where it came from; nothing is touched."""
    frames = moving_square(2)
    write_video(tmp_path / "a.mp4", frames, 8)
    (tmp_path / "plain").write_text("x", encoding="utf-8")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("x", encoding="utf-8")
    (tmp_path / "f.gif").mkdir()
    refused = {
        "a.mp4": "exists",
        "a.txt": r"\.mp4, \.gif, \.webp",
        "plain": "is a file",
        "home": "holds other files",
        "f.gif": "is a folder",
        "plain/a.mp4": "can't be written",
    }
    before = sorted(tmp_path.rglob("*"))
    for name, why in refused.items():
        with pytest.raises(EvditError, match=why) as told:
            write_video(tmp_path / name, frames, 8, overwrite=name == "home")
        assert told.value.exit_code == 2 and told.value.where
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(EvditError, match="positive"):
        write_video(tmp_path / "b.mp4", frames, float("nan"))
    with pytest.raises(ValueError):
        write_video(tmp_path / "b.mp4", frames.astype(np.float32), 8)
    check_output(tmp_path / "deep" / "er" / "b.mp4")
    check_output(f"{tmp_path}/frames.v2/")


def test_what_can_not_be_read(tmp_path: Path):
    """Missing, empty, cut short, no video, no frames: an error that names the file."""
    write_video(tmp_path / "cut.mp4", moving_square(), 8)
    content = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    for name in ("no.mp4", "empty.mp4", "empty.gif", "a.webp", "a.txt", "none"):
        if name not in ("no.mp4", "none"):
            (tmp_path / name).write_bytes(b"" if "empty" in name else b"hello")
    (tmp_path / "none").mkdir()
    for name in ("cut.mp4", "no.mp4", "empty.mp4", "empty.gif", "a.webp", "a.txt", "none"):
        with pytest.raises(EvditError, match=name):
            read_video(tmp_path / name)


def test_videos_of_other_programs(tmp_path: Path):
    """A GIF without our comment has the rate of its durations; a foreign comment is no metadata."""
    pictures = [stills.Image.fromarray(frame) for frame in moving_square(4)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=100, comment=b"hi")
    frames, fps = read_video(tmp_path / "a.gif")
    assert frames.shape[0] == 4 and fps == 10
    assert read_metadata(tmp_path / "a.gif") == {}
