"""Videos of a batch are put in place side by side: in order for the caller, none lost where one fails."""

import errno
import json
import os
import threading

import pytest

from tests.sampling.fakes import GaussianBackbone
from tests.sampling.test_generate import _make
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.sampling import generate as generating
from vdit_cli.sampling import making
from vdit_cli.sampling.making import Making


@pytest.fixture
def backbone(monkeypatch) -> GaussianBackbone:
    made = GaussianBackbone()
    monkeypatch.setattr(generating, "open_backbone", lambda source, **_: made)
    return made


def test_videos_take_their_places_while_later_ones_are_decoded(backbone, tmp_path, monkeypatch):
    """The second clip of a batch is not decoded before the first one's file is there, which would never end in turn."""
    out, decode, begun = tmp_path / "out", backbone.decode_video, []
    is_there = threading.Event()
    put = Making.put

    def puts(self, *rest):
        made = put(self, *rest)
        is_there.set()
        return made

    def decode_after(latents):
        begun.append(len(begun))
        assert len(begun) != 2 or is_there.wait(60), "no video took its place while the next one was decoded"
        return decode(latents)

    monkeypatch.setattr(Making, "put", puts)
    monkeypatch.setattr(backbone, "decode_video", decode_after)
    made = _make(out, "1", "2", "3", batch=3)
    assert [each.path.name[:4] for each in made] == ["0000", "0001", "0002"] and backbone.loads.count("vae") == 1
    assert [each.receipt.asked["prompt"] for each in made] == ["1", "2", "3"]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_batch_keeps_the_videos_that_were_written_when_one_fails(backbone, tmp_path, monkeypatch, broken):
    """They are in the run, the error is told, and the same command makes the rest alone."""
    out, write = tmp_path / "out", making.encode

    def encode(place, kind, frames, fps, told):
        if told["prompt"] == str(broken):
            raise EvditError("the encoder broke", exit_code=FAILED)
        write(place, kind, frames, fps, told)

    with monkeypatch.context() as patch:
        patch.setattr(making, "encode", encode)
        with pytest.raises(EvditError, match="the encoder broke; the frames are kept as PNGs in"):
            _make(out, "0", "1", "2", batch=3)
    noted = json.loads((out / "run.json").read_text(encoding="utf-8"))["outputs"]
    videos = sorted(path.name for path in out.glob("*.mp4"))
    assert sorted(each["path"] for each in noted.values()) == videos
    assert len(list(out.glob("*-frames"))) == 1 and not [name for name in videos if name.startswith(f"000{broken}")]
    steps = len(backbone.batches)
    assert len(_make(out, "0", "1", "2", batch=3)) == 3
    assert backbone.batches[steps] == 2 * (3 - len(videos)), "both branches of those that were not there"


def test_a_disk_that_fills_leaves_what_is_finished_and_says_how_much(backbone, tmp_path, monkeypatch):
    """In every start of the run, with those that earlier ones finished; what stays in run.json has no such count."""
    out, write = tmp_path / "out", making.encode
    for full, done in (("1", 1), ("3", 3), ("3", 3)):

        def encode(place, kind, frames, fps, told, full=full):
            if told["prompt"] == full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))
            write(place, kind, frames, fps, told)

        monkeypatch.setattr(making, "encode", encode)
        with pytest.raises(EvditError, match="the disk is full") as caught:
            _make(out, "0", "1", "2", "3", "4")
        left = f"; {done} videos are finished, {5 - done} are left: the same command goes on"
        assert caught.value.exit_code == FAILED and caught.value.what.endswith(left)
        assert "finished" not in json.loads((out / "run.json").read_text(encoding="utf-8"))["failure"]
    monkeypatch.setattr(making, "encode", write)
    assert len(_make(out, "0", "1", "2", "3", "4")) == 5


def test_a_single_video_that_fails_counts_none(backbone, tmp_path, monkeypatch):
    """There is nothing to go on with."""

    def encode(*_):
        raise EvditError("the encoder broke", exit_code=FAILED)

    monkeypatch.setattr(making, "encode", encode)
    with pytest.raises(EvditError) as caught:
        _make(tmp_path / "out.mp4", "0")
    assert "are finished" not in caught.value.what
