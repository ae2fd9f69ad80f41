"""Where videos go: what was there is kept until its successor stands, and what is not ours is left alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.sampling.fakes import GaussianBackbone
from vdit_cli.artifacts import atomic, video_file
from vdit_cli.artifacts.atomic import write_json, write_text
from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.video_file import read_metadata, read_video
from vdit_cli.errors import FAILED, USAGE, EvditError, Interrupted
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling import generate as generating
from vdit_cli.sampling import making
from vdit_cli.sampling.generate import Asked, generate
from vdit_cli.timing import Silent


@pytest.fixture
def backbone(monkeypatch) -> GaussianBackbone:
    made = GaussianBackbone()
    monkeypatch.setattr(generating, "open_backbone", lambda source, **_: made)
    return made


def _make(out, *prompts, progress=None, overwrite=False, **options):
    return generate(GenerateOptions(**options), Asked(prompts, None, Path(out), overwrite), progress or Silent())


def _content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and below it but the lock, by its relative name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


class _StopAt(Silent):
    """Ctrl-C once `reached` is true."""

    def __init__(self, reached) -> None:
        super().__init__()
        self.should_stop = reached


def test_overwriting_a_run_that_then_fails_keeps_it(backbone, tmp_path, monkeypatch):
    """A model that does not load, and Ctrl-C at the first step: the old run is as it was, run.json included."""
    _make(tmp_path / "run", "1", "2")
    before = _content(tmp_path / "run")

    def broken(prompts):
        raise EvditError("text_encoder/model.safetensors is damaged", exit_code=3)

    with monkeypatch.context() as patch:
        patch.setattr(backbone, "encode_text", broken)
        with pytest.raises(EvditError, match="is damaged"):
            _make(tmp_path / "run", "3", "4", overwrite=True)
    assert _content(tmp_path / "run") == before
    with pytest.raises(Interrupted, match="0 videos are finished, 2 are left"):
        _make(tmp_path / "run", "3", "4", overwrite=True, progress=_StopAt(lambda: True))
    assert _content(tmp_path / "run") == before
    progress = Silent()
    _make(tmp_path / "run", "1", "2", progress=progress)
    assert any("2 of 2 videos" in line for line in progress.lines)


def test_an_overwriting_that_is_stopped_goes_on(backbone, tmp_path):
    """The same command again keeps the new videos; the old ones stay until theirs are there, then go."""
    _make(tmp_path / "run", "1", "2", "3")
    new = tmp_path / "run" / "0000-4.mp4"
    with pytest.raises(Interrupted, match="1 videos are finished, 1 are left"):
        _make(tmp_path / "run", "4", "5", overwrite=True, progress=_StopAt(new.exists))
    assert {path.name for path in new.parent.glob("*.mp4")} == {
        "0000-4.mp4",
        "0000-1.mp4",
        "0001-2.mp4",
        "0002-3.mp4",
    }
    first = new.stat().st_mtime_ns
    _make(tmp_path / "run", "4", "5", overwrite=True)
    assert new.stat().st_mtime_ns == first
    assert {path.name for path in new.parent.iterdir()} == {
        *("0000-4.mp4", "0000-4.json", "0001-5.mp4", "0001-5.json"),
        *("run.json", "receipt.json", "README.md", ".lock"),
    }
    assert Receipt.read(new.parent / "receipt.json").asked["prompts"] == ["4", "5"]
    _make(tmp_path / "run", "4", "5", overwrite=True)
    assert new.stat().st_mtime_ns > first, "a finished run is made anew"


def test_the_run_of_another_command_is_left_alone(backbone, tmp_path):
    """With --overwrite too, and before anything loads."""
    _make(tmp_path / "run", "1", "2")
    manifest = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    write_json(tmp_path / "run" / "run.json", {**manifest, "command": "analyze"})
    before, loads = _content(tmp_path / "run"), len(backbone.loads)
    for overwrite in (False, True):
        with pytest.raises(EvditError, match="is a run of evdit analyze: evdit generate leaves it alone") as told:
            _make(tmp_path / "run", "1", "2", overwrite=overwrite)
        assert (told.value.exit_code, told.value.where) == (USAGE, str(tmp_path / "run" / "run.json"))
    assert _content(tmp_path / "run") == before and len(backbone.loads) == loads


def test_a_folder_of_somebodys_keeps_all_that_is_in_it(backbone, tmp_path):
    """--overwrite into a web folder: names like temporary ones, at any depth, and a README of its own."""
    kept = {"js/.bundle.1a2b3c4d.js": b"a", ".cache.deadbeef/x": b"b", "README.md": b"c", ".evdit-deadbeef.mp4": b"d"}
    for name, content in kept.items():
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / name).write_bytes(content)
    for _ in range(2):
        _make(tmp_path / "web", "1", "2", overwrite=True)
        assert _content(tmp_path / "web").items() >= kept.items()
    (tmp_path / "other" / "js").mkdir(parents=True)
    write_text(tmp_path / "other" / "receipt.json", "mine")
    with pytest.raises(EvditError, match="receipt.json is not of a run of evdit"):
        _make(tmp_path / "other", "1", "2", overwrite=True)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "gone", "folder", "full folder", "no receipt", "torn receipt", "its folder"]
)
def test_a_finished_video_that_is_damaged_is_made_again(backbone, tmp_path, damage):
    """And the other is not; a folder in its place is moved aside with what it holds."""
    first, second = _make(tmp_path / "run", "1", "2")
    whole, time = first.path.read_bytes(), second.path.stat().st_mtime_ns
    sidecar = first.path.with_suffix(".json")
    if damage == "empty":
        first.path.write_bytes(b"")
    elif damage == "cut":
        first.path.write_bytes(whole[: len(whole) // 2])
    elif damage == "torn receipt":
        sidecar.write_text('{"schema": "evdit.rec', encoding="utf-8")
    elif damage == "its folder":
        sidecar.unlink()
        write_text(sidecar / "thesis.tex", "mine")
    elif damage == "no receipt":
        sidecar.unlink()
    else:
        first.path.unlink()
    if damage in ("folder", "full folder"):
        first.path.mkdir()
    if damage == "full folder":
        write_text(first.path / "thesis.tex", "mine")
    progress = Silent()
    _make(tmp_path / "run", "1", "2", progress=progress)
    assert first.path.read_bytes() == whole and Receipt.read(sidecar).output_sha256 == path_digest(first.path)
    assert second.path.stat().st_mtime_ns == time
    assert any("0000-1.mp4 or its receipt is gone or damaged: it is made again" in line for line in progress.lines)
    for aside, when in ((f"{first.path}.aside", "full folder"), (f"{sidecar}.aside", "its folder")):
        assert (Path(aside) / "thesis.tex").exists() == (damage == when)
        assert any(aside in line for line in progress.lines) == (damage == when)


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_the_receipt_of_a_run_is_that_of_its_videos(backbone, tmp_path, damage):
    """Whatever became of it; and each video counts once."""
    _make(tmp_path / "run", "1", "2")
    whole = tmp_path / "run" / "receipt.json"
    first = Receipt.read(whole)
    each = [Receipt.read(tmp_path / "run" / name) for name in ("0000-1.json", "0001-2.json")]
    assert first.seconds["denoise"] == round(sum(receipt.seconds["denoise"] for receipt in each), 4)
    assert first.output is None and first.asked["prompts"] == ["1", "2"]
    whole.unlink() if damage is None else whole.write_bytes(damage)
    _make(tmp_path / "run", "1", "2")
    assert Receipt.read(whole) == first


@pytest.mark.parametrize("name", ["out.mp4", "frames"])
def test_video_and_receipt_are_one_unit(backbone, tmp_path, monkeypatch, name):
    """The disk fills after the video and before the receipt: both are the old ones. Then both are the new ones."""
    (old,) = _make(tmp_path / name, "1")
    before = _content(tmp_path)
    assert old.receipt.output_sha256 == path_digest(old.path)
    real = Receipt.write

    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Receipt, "write", full)
    with pytest.raises(EvditError, match="the disk is full: .*json was not written, and what stood there") as told:
        _make(tmp_path / name, "2", overwrite=True)
    assert told.value.exit_code == FAILED and _content(tmp_path) == before
    monkeypatch.setattr(Receipt, "write", real)
    (new,) = _make(tmp_path / name, "2", overwrite=True)
    assert new.receipt.output_sha256 == path_digest(new.path) != old.receipt.output_sha256
    assert read_metadata(new.path)["prompt"] == new.receipt.asked["prompt"] == "2"


def test_a_shorter_video_leaves_no_frame_of_the_longer_one(backbone, tmp_path):
    """In a folder of PNGs that is written over, where also a hidden file may lie."""
    _make(tmp_path / "frames", "1", video_frames=9)
    write_text(tmp_path / "frames" / ".DS_Store", "mine")
    (made,) = _make(tmp_path / "frames", "1", overwrite=True)
    names = sorted(os.listdir(tmp_path / "frames"))
    assert names == [".DS_Store", *(f"{number:05d}.png" for number in range(5))]
    assert made.receipt.output_sha256 == path_digest(made.path)


def test_links_and_folders_that_are_there_are_written_through(backbone, tmp_path, monkeypatch):
    """A link to a file, a link to a folder, and the working directory under three names."""
    (tmp_path / "far").mkdir()
    (tmp_path / "out.mp4").symlink_to(tmp_path / "far" / "video.mp4")
    (tmp_path / "out").symlink_to(tmp_path / "far")
    for overwrite in (False, True):
        _make(tmp_path / "out.mp4", "1", overwrite=overwrite)
        assert (tmp_path / "out.mp4").is_symlink() and read_metadata(tmp_path / "far" / "video.mp4")["prompt"] == "1"
    _make(tmp_path / "out", "1", "2", overwrite=True)
    assert (tmp_path / "out").is_symlink() and (tmp_path / "far" / "0001-2.mp4").is_file()
    for number, name in enumerate((".", "sub/..", "{here}")):
        here = tmp_path / f"here-{number}"
        (here / "sub").mkdir(parents=True) if "sub" in name else here.mkdir()
        monkeypatch.chdir(here)
        inode = here.stat().st_ino
        if "sub" in name:
            with pytest.raises(EvditError, match="holds other files than frames"):
                _make(name, "1")
            continue
        (made,) = _make(name.format(here=here), "1")
        assert os.getcwd() == str(here) and here.stat().st_ino == inode
        assert len(list(here.glob("*.png"))) == 5 and made.path.resolve() == here


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file system")
def test_a_mount_point_is_written_into(tmp_path):
    """In a mount namespace of its own, as a container has it: a folder, and a single file."""
    (tmp_path / "mp").mkdir()
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "b.txt", "old")
    program = (
        "from vdit_cli.artifacts.atomic import replacing_together, write_text\n"
        "with replacing_together('mp', drop=lambda file: True) as (beside,):\n"
        "    write_text(beside / '0.png', 'x')\n"
        "write_text('a.txt', 'new')\n"
        "import os; print(sorted(os.listdir('mp')), os.path.ismount('mp'), open('b.txt').read())\n"
    )
    mounted = f'mount -t tmpfs none mp && mount --bind b.txt a.txt && exec {sys.executable} -c "$0"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mounted, program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.stdout == "['0.png'] True new\n", done.stderr


def test_frames_are_kept_where_their_encoding_fails(backbone, tmp_path, monkeypatch):
    """As PNGs, under a free name, and the error says where."""
    real = making.encode

    def broken(place, kind, *rest):
        if kind == ".mp4":
            raise EvditError("the encoder libx264 said: no", exit_code=FAILED)
        return real(place, kind, *rest)

    monkeypatch.setattr(making, "encode", broken)
    for name in ("out-frames", "out-frames-2"):
        with pytest.raises(EvditError, match=f"libx264 said: no; the frames are kept as PNGs in .*{name}$") as told:
            _make(tmp_path / "out.mp4", "1")
        assert told.value.exit_code == FAILED and "-o NAME.gif" in told.value.next_steps[-1]
        frames, fps = read_video(tmp_path / name)
        assert frames.shape == (5, 32, 48, 3) and fps == 8
    assert not (tmp_path / "out.mp4").exists() and not (tmp_path / "out.json").exists()


BAD_PLACES = {
    "/proc/x.mp4": "/proc is no folder that you may write to",
    "x" * 252 + ".mp4": "File name too long",
    "x" * 251 + ".mp4": "File name too long",  # its receipt is a letter longer
    "taken.mp4": "taken.json is no receipt of a video",
}


@pytest.mark.parametrize("place", BAD_PLACES, ids=lambda place: f"{place[:12]}{len(place)}")
def test_places_that_can_not_be_are_found_before_anything_loads(backbone, tmp_path, place):
    """By the name of the video, of its receipt, and by trying the folder."""
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(EvditError, match=BAD_PLACES[place]) as told:
        _make(tmp_path / place, "1", overwrite=True)
    assert told.value.exit_code == USAGE and told.value.where.startswith("-o ")
    assert backbone.loads == [] and os.listdir(tmp_path) == ["taken.json"]


def test_a_batch_that_is_denoised_is_written_before_a_stop(backbone, tmp_path, monkeypatch):
    """Ctrl-C while the first of two is decoded: nothing that is finished is thrown away."""
    decoded = []
    real = backbone.decode_video
    monkeypatch.setattr(backbone, "decode_video", lambda latents: (decoded.append(1), real(latents))[1])
    with pytest.raises(Interrupted, match="2 videos are finished, 1 are left"):
        _make(tmp_path / "run", "1", num=3, batch=2, progress=_StopAt(lambda: bool(decoded)))
    assert len(list((tmp_path / "run").glob("*.mp4"))) == 2


def test_a_receipt_of_another_video_is_known_by_its_digest(backbone, tmp_path):
    """As a process killed between the two renames leaves it."""
    (made,) = _make(tmp_path / "out.mp4", "1")
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    video_file.write_video(made.path, frames, 8, {"prompt": "2"}, overwrite=True)
    assert Receipt.read(tmp_path / "out.json").output_sha256 != path_digest(made.path)
    assert replace(made.receipt, output_sha256=None) != made.receipt


def test_a_second_interrupt_while_two_are_put_in_place(backbone, tmp_path, monkeypatch):
    """The pair is whole, whatever the moment."""
    real = atomic.put_in_place

    def interrupted(*args):
        real(*args)
        if args[1].name == "out.mp4":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(atomic, "put_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _make(tmp_path / "out.mp4", "1")
    assert Receipt.read(tmp_path / "out.json").output_sha256 == path_digest(tmp_path / "out.mp4")


def test_a_file_that_another_made_meanwhile_is_not_written_over(backbone, tmp_path, monkeypatch):
    """Two commands with one place, neither with --overwrite: both videos are there, and where is said."""
    real = backbone.decode_video

    def meanwhile(latents):
        (tmp_path / "out.mp4").write_bytes(b"theirs")
        (tmp_path / "out-2.json").write_bytes(b"theirs too")
        return real(latents)

    monkeypatch.setattr(backbone, "decode_video", meanwhile)
    progress = Silent()
    (made,) = _make(tmp_path / "out.mp4", "1", progress=progress)
    assert made.path == tmp_path / "out-3.mp4" and read_metadata(made.path)["prompt"] == "1"
    assert Receipt.read(tmp_path / "out-3.json") == made.receipt
    assert (tmp_path / "out.mp4").read_bytes() == b"theirs"
    assert (tmp_path / "out-2.json").read_bytes() == b"theirs too"
    assert any("out.mp4 exists, made by another" in line and "out-3.mp4" in line for line in progress.lines)


def test_a_place_that_refuses_in_the_end(backbone, tmp_path, monkeypatch):
    """Another user's file in a sticky folder: what was computed is kept where it can be, and the error says where."""
    (tmp_path / "out.mp4").write_bytes(b"theirs")
    real = os.replace

    def sticky(source, target):
        if Path(target) == tmp_path / "out.mp4":
            raise PermissionError(errno.EPERM, "Operation not permitted", str(source), None, str(target))
        real(source, target)

    monkeypatch.setattr(os, "replace", sticky)
    monkeypatch.setattr(making.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "kept"))
    with pytest.raises(EvditError, match="out.mp4 can't be written: Operation not permitted") as told:
        _make(tmp_path / "out.mp4", "1", overwrite=True)
    assert told.value.exit_code == FAILED and told.value.next_steps[0] == f"{tmp_path}/kept/out.mp4 holds the video"
    assert (tmp_path / "out.mp4").read_bytes() == b"theirs" and not (tmp_path / "out.json").exists()
    assert read_metadata(tmp_path / "kept" / "out.mp4")["prompt"] == "1"


@pytest.mark.parametrize("name", ["run.json", "package.json"])
def test_a_neighbour_that_is_no_receipt_is_never_replaced(backbone, tmp_path, name):
    """`-o run.mp4` in a run, with --overwrite too; and nothing advises it."""
    (tmp_path / name).write_text('{"name": "mine"}', encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(EvditError, match=f"{name} is no receipt of a video") as told:
            _make(tmp_path / Path(name).with_suffix(".mp4"), "1", overwrite=overwrite)
        assert told.value.exit_code == USAGE and told.value.next_steps == ("another name",)
    assert (tmp_path / name).read_text(encoding="utf-8") == '{"name": "mine"}' and backbone.loads == []


def test_the_same_command_goes_on_after_midnight(backbone, tmp_path, monkeypatch):
    """A run without -o that has not ended is found under its older date; a finished one is left as it is."""
    monkeypatch.chdir(tmp_path)
    asked = Asked(("1", "2"), None, None, False)
    with pytest.raises(Interrupted):
        generate(GenerateOptions(), asked, _StopAt(lambda: bool(list(tmp_path.glob("runs/*/*.mp4")))))
    (run,) = Path("runs").iterdir()
    yesterday = run.rename(run.with_name("2020-01-01" + run.name[10:]))
    made = generate(GenerateOptions(), asked, Silent())
    assert {each.path.parent for each in made} == {yesterday} and len(list(Path("runs").iterdir())) == 1
    made = generate(GenerateOptions(), asked, Silent())
    assert {each.path.parent for each in made} == {run}
