"""Videos on disk: round trips in every format, metadata, refusals, a full disk."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import weakref
from fractions import Fraction
from io import StringIO
from pathlib import Path

import av
import numpy as np
import pytest

from vdit_cli.artifacts import mp4, stills
from vdit_cli.artifacts.video_file import (
    check_encoder,
    check_output,
    encode,
    read_frames,
    read_metadata,
    read_video,
    write_video,
)
from vdit_cli.cli.console import Console
from vdit_cli.errors import ENVIRONMENT, FAILED, USAGE, EvditError

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
    assert fps == 12.5
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
    with av.open(tmp_path / "a.mp4") as container:
        stream = container.streams.video[0]
        coder = stream.codec_context
        assert (coder.name, coder.pix_fmt, stream.average_rate, stream.frames) == ("h264", "yuv420p", 8, 9)
        colours = (coder.colorspace, coder.color_primaries, coder.color_trc, coder.color_range)
        assert colours == (1, 1, 1, 1) and coder.field_order == 1
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


def test_a_full_device(tmp_path: Path):
    """The system's own words become the error of a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as told:
        encode(Path("/dev/full"), ".mp4", moving_square(), 8)
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


@pytest.mark.parametrize("rate", ["24000/1001", "1000", "1/3", "23.976", "1/600", "24"])
@pytest.mark.parametrize("name", NAMES)
def test_a_rate_is_read_back_exactly(tmp_path: Path, name: str, rate: str):
    """Of one frame too, and of one that stays, which WebP keeps without a time."""
    for number, frames in enumerate([moving_square(7), moving_square(1), moving_square(1).repeat(3, axis=0)]):
        if name == "clip.gif" and rate == "1/600" and number != 1:
            continue  # a picture that stays for longer than a GIF can say: see below
        path = tmp_path / f"{number}{name}"
        write_video(path, frames, Fraction(rate))
        again, fps = read_video(path)
        assert (again.shape, fps) == (frames.shape, Fraction(rate))


def test_what_a_gif_can_not_hold_is_told(tmp_path: Path):
    """Half an hour of one picture: exit 1, the reason of Pillow, nothing left."""
    with pytest.raises(EvditError, match="3 frames of 64x48 could not be made a GIF: (int too big|.*65535)") as told:
        write_video(tmp_path / "a.gif", moving_square(1).repeat(3, axis=0), Fraction(1, 600))
    assert told.value.exit_code == FAILED and os.listdir(tmp_path) == []


BAD_RATES = [0, -1, float("nan"), float("inf"), 10**30, 1001, "1/0", "abc", "1e1", "24000001/1001000"]


@pytest.mark.parametrize("fps", BAD_RATES)
def test_rates_that_no_file_holds(tmp_path: Path, fps: object):
    """Exit 2, with the bounds, before anything is written."""
    with pytest.raises(EvditError, match="positive number .* at least 1/600, at most 1000") as told:
        write_video(tmp_path / "b.mp4", moving_square(2), fps)
    assert told.value.exit_code == USAGE and told.value.where == f"--fps {fps}" and os.listdir(tmp_path) == []


PROTOCOLS = ["12:30.mp4", "run-2026-11-27T10:00:00.mp4", "pipe:1.mp4", "file:x.mp4", "concat:a|b.mp4"]


@pytest.mark.parametrize("name", [*PROTOCOLS, "%03d.mp4", "-i.mp4", "é 漢.mp4"])
def test_any_name_will_do(tmp_path: Path, name: str):
    """What ffmpeg would take for a protocol or a pattern is a name, written from the folder it lies in or from afar."""
    write_video(name, moving_square(2), 8, METADATA)
    assert os.listdir(tmp_path) == [name]
    assert len(read_video(tmp_path / name)[0]) == 2 and read_metadata(name) == METADATA


@pytest.mark.parametrize("name", NAMES)
def test_tags_of_any_length(tmp_path: Path, name: str):
    """Longer than an argument of a program may be."""
    told = {"prompt": "漢 word " * 40_000, "seed": "7"}
    write_video(tmp_path / name, moving_square(2), 8, told)
    assert read_metadata(tmp_path / name) == told and len(read_video(tmp_path / name)[0]) == 2


def test_an_mp4_cut_short_anywhere_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Never fewer frames; and ffmpeg itself says nothing past us."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.mp4", noise, 8)
    content = (tmp_path / "whole.mp4").read_bytes()
    for length in [*range(0, len(content), len(content) // 23), len(content) - 1]:
        (tmp_path / "cut.mp4").write_bytes(content[:length])
        with pytest.raises(EvditError, match="cut.mp4 can't be read as a video: .") as told:
            read_video(tmp_path / "cut.mp4")
        assert told.value.exit_code == USAGE
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tag", ["0x0", "64x50", "9999999999x1", "abc", "-64x48"])
def test_a_size_tag_that_is_not_true(tmp_path: Path, tag: str):
    """It may only cut off the row and the column that were padded."""
    mp4.write(tmp_path / "a.mp4", moving_square(2), Fraction(8), {mp4.SIZE_TAG: tag})
    with pytest.raises(EvditError, match=f"a.mp4 .* its tag evdit_size is '{tag}', its pictures are 64x48"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
@pytest.mark.parametrize("claim", [("8", 10**12), ("8", 3), ("8", 0), ("1000", 9), ("999999", 10**6), ("8", -9)])
def test_a_comment_that_is_not_true(tmp_path: Path, name: str, claim: tuple[str, int], monkeypatch: pytest.MonkeyPatch):
    """More or fewer frames than there is time for, or another rate: refused before a frame is repeated."""
    comment = json.dumps({stills.FPS_KEY: claim[0], stills.COUNT_KEY: str(claim[1])})
    monkeypatch.setattr(stills, "comment_text", lambda *_: comment)
    write_video(tmp_path / name, moving_square(9), 8)
    rule = rf"{name} can't be read as pictures: its comment claims {claim[1]} frames at {claim[0]} a second, its \d"
    with pytest.raises(EvditError, match=rule):
        read_frames(tmp_path / name)
    write_video(tmp_path / name, moving_square(1), 8, overwrite=True)
    if name == "a.gif" or not 0 < claim[1] <= stills.MOST_REPEATS:  # one WebP picture has no time of its own
        with pytest.raises(EvditError, match=rule):
            read_frames(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_read_one_at_a_time(tmp_path: Path, name: str):
    """Of 60 frames never more than two are alive, those that stand still included."""
    write_video(tmp_path / name, moving_square(60), 24)
    rate, size, frames = read_frames(tmp_path / name)
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    for frame in frames:
        assert frame.shape == (*size, 3)
        alive.append(weakref.ref(frame))
        most = max(most, len({id(seen()) for seen in alive if seen() is not None}))
    gc.collect()
    assert (rate, len(alive)) == (24, 60) and most <= 2


def test_a_file_that_is_none(tmp_path: Path):
    """A FIFO would wait forever."""
    os.mkfifo(tmp_path / "a.mp4")
    for read in (read_video, read_metadata):
        with pytest.raises(EvditError, match=r"a\.mp4 is no regular file"):
            read(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", NAMES)
def test_encoding_to_an_exact_place(tmp_path: Path, name: str):
    """The file of that name and no other, whatever its suffix; Ctrl-C is handled by whom it was."""
    before = signal.getsignal(signal.SIGINT)
    encode(tmp_path / ".beside.tmp", Path(name).suffix, moving_square(3), 8, METADATA)
    assert os.listdir(tmp_path) == [".beside.tmp"] and signal.getsignal(signal.SIGINT) is before
    (tmp_path / ".beside.tmp").rename(tmp_path / name)
    assert len(read_video(tmp_path / name)[0]) == 3 and read_metadata(tmp_path / name) == METADATA


def test_ctrl_c_while_an_mp4_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first one, which asks to stop, lets it be finished; one that is not minded leaves nothing."""
    pictures = mp4.pictures

    def interrupted(*args: object):
        for number, picture in enumerate(pictures(*args)):
            if number == 4:
                signal.raise_signal(signal.SIGINT)
            yield picture

    monkeypatch.setattr(mp4, "pictures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", moving_square(), 8)
    assert os.listdir(tmp_path) == []
    with Console(err=StringIO()) as console:
        write_video(tmp_path / "a.mp4", moving_square(), 8)
    assert console.should_stop() and len(read_video(tmp_path / "a.mp4")[0]) == 9


def test_an_encoder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Asked before any work, only for an mp4: exit 3 and the fix. One that fails in the midst of it: exit 1."""
    monkeypatch.setattr(mp4, "ENCODER", "libx999")
    for check in (lambda: check_encoder(".mp4"), lambda: check_output(tmp_path / "a.mp4")):
        with pytest.raises(EvditError, match="mp4 files can't be written: .* without libx999") as told:
            check()
        assert told.value.exit_code == ENVIRONMENT and told.value.next_steps[0].startswith("pip install")
    check_output(tmp_path / "a.gif")
    with pytest.raises(EvditError, match="libx999 could not encode 9 frames of 64x48: .") as told:
        encode(tmp_path / "a.mp4", ".mp4", moving_square(), 8)
    assert told.value.exit_code == FAILED and os.listdir(tmp_path) == []


def test_an_encoder_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """ffmpeg's words are in the error and nowhere else; an older video stays."""
    write_video(tmp_path / "a.mp4", moving_square(3), 8)
    monkeypatch.setattr(mp4, "TO_H264", (("format", "yuv444p"),))
    monkeypatch.setattr(mp4, "CRF", "a lot")
    with pytest.raises(EvditError, match="could not encode 9 frames of 64x48: .") as told:
        write_video(tmp_path / "a.mp4", moving_square(), 8, overwrite=True)
    assert told.value.exit_code == FAILED and capfd.readouterr() == ("", "")
    assert len(read_video(tmp_path / "a.mp4")[0]) == 3


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx")])
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_files_that_count_no_frames_are_refused_when_cut(tmp_path: Path, name: str, codec: str, kept: float):
    """By how long they say that they last, down to the last frame."""
    frames = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8)
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    assert len(read_video(tmp_path / name)[0]) == 30
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(EvditError, match="it should last 1.250 s, and its frames end at"):
        read_video(tmp_path / name)


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_gif_that_is_cut_is_refused(tmp_path: Path, kept: int):
    """Wherever it is cut, never with an error of Pillow's."""
    write_video(tmp_path / "a.gif", np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8), 8, {"a": "b"})
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(content[: len(content) * kept // 60])
    with pytest.raises(EvditError, match="a.gif can't be read"):
        read_video(tmp_path / "a.gif")


def test_a_folder_that_lost_a_frame_is_refused(tmp_path: Path):
    """Its first picture tells how many there are; a folder with the name of a frame is no frame."""
    video = np.zeros((4, 16, 16, 3), np.uint8)
    write_video(tmp_path / "frames", video, 8)
    (tmp_path / "frames" / "00002.png").unlink()
    with pytest.raises(EvditError, match="it holds 3 of 4 frames"):
        read_video(tmp_path / "frames")
    (tmp_path / "frames" / "00002.png").mkdir()
    with pytest.raises(EvditError, match="holds other files than frames"):
        write_video(tmp_path / "frames", video, 8, overwrite=True)


def test_the_same_frames_make_the_same_file(tmp_path: Path):
    """Whatever lay in memory before: small pictures, which x264's macroblock tree reads past, a hundred times."""
    squares = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    frames = squares.repeat(4, axis=1).repeat(4, axis=2)
    kinds = set()
    for _ in range(100):
        mp4.write(tmp_path / "a.mp4", frames, Fraction(8), {})
        kinds.add((tmp_path / "a.mp4").read_bytes())
    assert len(kinds) == 1


@pytest.mark.parametrize(("size", "threads"), [((32, 32), 1), ((480, 640), 1), ((720, 1280), 4), ((1088, 1920), 8)])
def test_threads_follow_the_pictures_size_and_not_the_machine(tmp_path: Path, size: tuple[int, int], threads: int):
    """x264 tells in the file with how many it worked, and a reader of many small videos has one each."""
    frames = np.zeros((2, *size, 3), dtype=np.uint8)
    mp4.write(tmp_path / "a.mp4", frames, Fraction(8), {})
    assert f" threads={threads} ".encode() in (tmp_path / "a.mp4").read_bytes()
    with mp4.reading(tmp_path / "a.mp4") as (_, _, stream):
        assert stream.codec_context.thread_count == threads
