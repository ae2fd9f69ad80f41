"""Work that is kept: in one process or several the same, resumed after a kill or Ctrl-C at a point that is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.clips import pixels
from vdit_cli.artifacts.video_file import read_frames, write_video
from vdit_cli.data.shapes_world import caption, draw_scenes
from vdit_cli.errors import FAILED, INTERRUPTED, USAGE, EvditError
from vdit_cli.evaluation import readings
from vdit_cli.evaluation import score as scoring
from vdit_cli.evaluation.score import score
from vdit_cli.evaluation.work import SCHEMA, workers_for, working
from vdit_cli.timing import Silent

COUNT = 6
KILLED = """
import os, signal, sys
from vdit_cli.cli import console
from vdit_cli.cli.app import main

def advance(self, note=""):
    global done
    done += 1
    if done == 2:
        os.killpg(0, signal.SIGINT) if sys.argv[1] == "SIGINT" else os.kill(os.getpid(), signal.SIGKILL)

done = 0
console.Console.advance = advance
sys.exit(main(["score", *sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips with their prompts."""
    folder = tmp_path_factory.mktemp("videos")
    for number, scene in enumerate(draw_scenes(71, COUNT)):
        write_video(folder / f"{number}.mp4", pixels(scene, frames=9), 8, {"prompt": caption(scene), "seed": "0"})
    return folder


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the videos that are read in this process from now on."""
    names: list[str] = []
    see_video = scoring.see_video
    monkeypatch.setattr(scoring, "see_video", lambda path, digest: names.append(path.name) or see_video(path, digest))
    return names


def test_a_part_ends_before_anything_else_is_said(tmp_path: Path):
    """So that lines come in the order of what they tell."""
    told: list[str] = []

    class Recorded(Silent):
        def stage(self, label: str, total: int) -> None:
            told.append(f"{label} begins")

        def end_stage(self) -> None:
            told.append("end")

        def say(self, line: str) -> None:
            told.append(line)

    with working(tmp_path / "kept.jsonl", 1, Recorded()) as work:
        work.results("reading", str, {"a": (1,)})
        assert work.results("rendering", str, {"a": (1,), "b": (2,)}) == {"a": "1", "b": "2"}
    assert told == ["reading begins", "end", "rendering: 1 of 2 are there already", "rendering begins", "end"]


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_was_read_is_not_read_again(videos: Path, workers: str, how: str, monkeypatch: pytest.MonkeyPatch):
    """Ended when two videos are kept, by Ctrl-C or a kill; a torn line behind them. No process stays, nothing differs.

    Reading its output to the end waits for every process that it started.
    """
    kept = Path("readings.jsonl")
    args = [how, str(videos), "-o", str(kept), "--workers", workers, "--world"]
    program = [sys.executable, "-c", KILLED, *args]
    done = subprocess.run(program, capture_output=True, encoding="utf-8", start_new_session=True)
    assert done.stdout == "" and "Traceback" not in done.stderr
    if how == "SIGINT":
        assert done.returncode == INTERRUPTED
        assert f"error: stopped: reading is done for 2 of {COUNT}" in done.stderr
        assert "the same command again" in done.stderr
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and json.loads(lines[0]) == {"schema": SCHEMA}
    with kept.open("a", encoding="utf-8") as file:
        file.write(lines[2][:-9])
    names = calls_of(monkeypatch)
    found = score([videos], kept=kept, world=True)
    assert len(names) == COUNT - 2
    assert all(json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines())
    assert found == score([videos], kept=kept, world=True) and len(names) == COUNT - 2
    assert found == score([videos], world=True)
    assert found.frechet is not None and len(kept.read_text(encoding="utf-8").splitlines()) == 1 + 2 * COUNT


def test_any_number_of_processes_finds_the_same(videos: Path):
    """The world's clips too, which a video is compared with."""
    assert score([videos], workers=2, world=True) == score([videos], workers=1, world=True)


def test_a_changed_video_is_read_again(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is kept belongs to a digest, not to a name; a copy is not read."""
    kept, copies = tmp_path / "kept" / "readings.jsonl", tmp_path / "copies"
    score([videos], kept=kept)
    copies.mkdir()
    for number in range(2):
        (copies / f"{number}.mp4").write_bytes((videos / f"{5 - number}.mp4").read_bytes())
    names = calls_of(monkeypatch)
    found = score([copies], kept=kept)
    assert names == [] and [clip.name for clip in found.clips] == ["0.mp4", "1.mp4"]
    write_video(copies / "1.mp4", pixels(draw_scenes(72, 1)[0], frames=5), 8, overwrite=True)
    score([copies], kept=kept)
    assert names == ["1.mp4"]


@pytest.mark.parametrize("content", ["", '{"schema": "evdit.readi', '{"schema": "evdit.readings/2"}\n{"key": "vid'])
def test_a_file_that_was_just_begun_is_gone_on_with(content: str):
    """Empty, or cut within its first line or its second."""
    path = Path("kept.jsonl")
    path.write_text(content, encoding="utf-8")
    with working(path, 1, Silent()) as work:
        assert work.results("adding", int.__add__, {"a": (1, 2), "b": (3, 4)}) == {"a": 3, "b": 7}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"schema": SCHEMA}
    assert [(line["key"], line["value"]) for line in lines[1:]] == [("a", 3), ("b", 7)]
    with working(path, 1, Silent()) as work:
        assert work.known == {"a": 3, "b": 7}


@pytest.mark.parametrize("value", ["null", "{}", "3.0", "[" * 2000 + "]" * 2000])
def test_a_line_that_was_changed_is_no_reading(value: str):
    """Empty, a number like it, or brackets without an end: exit 2, and nothing of the file is lost."""
    path = Path("kept.jsonl")
    with working(path, 1, Silent()) as work:
        work.results("adding", int.__add__, {"a": (1, 2), "b": (3, 4)})
    changed = path.read_text(encoding="utf-8").replace('"value": 3,', f'"value": {value},')
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(EvditError, match="no file of readings") as error, working(path, 1, Silent()):
        raise AssertionError("nobody gets here")
    assert error.value.exit_code == USAGE and path.read_text(encoding="utf-8") == changed


def test_a_video_that_is_made_anew_while_it_is_read(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing is kept under the digest of the one before: exit 1, and the same command then reads the one after."""
    scenes = draw_scenes(73, 2, two_objects=0.0)
    for scene, name in zip(scenes, ("seen.mp4", "next.mp4"), strict=True):
        write_video(tmp_path / name, pixels(scene, frames=9), 8)
    place, kept = tmp_path / "seen.mp4", tmp_path / "kept.jsonl"

    def read_after_a_swap(path: Path) -> tuple:
        (tmp_path / "next.mp4").replace(path)
        return read_frames(path)

    with monkeypatch.context() as patch:
        patch.setattr(readings, "read_frames", read_after_a_swap)
        with pytest.raises(EvditError, match="seen.mp4 changed while it was read") as error:
            score([place], kept=kept)
    assert error.value.exit_code == FAILED and "same command again" in error.value.next_steps[0]
    assert kept.read_text(encoding="utf-8").splitlines() == [json.dumps({"schema": SCHEMA})]
    assert score([place], kept=kept).clips[0].reading.background == scenes[1].background != scenes[0].background


@pytest.mark.parametrize(
    "content", ["notes", "notes\n", '{"schema": "evdit.readings/0"}\n', f'{{"schema": "{SCHEMA}"}}\n7\n']
)
def test_another_file_is_left_alone(videos: Path, content: str):
    """Exit 2, nothing read, nothing written; a folder too."""
    path = Path("notes.txt")
    path.write_text(content, encoding="utf-8")
    for place in (path, Path()):
        with pytest.raises(EvditError) as error:
            score([videos], kept=place)
        assert error.value.exit_code == USAGE and error.value.where == f"-o {place}"
    assert path.read_text(encoding="utf-8") == content


def test_processes_by_clips_and_cores(monkeypatch: pytest.MonkeyPatch):
    """One for eight clips, one a core that this process may use, and never none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert [workers_for(clips) for clips in (0, 1, 15, 16, 100, 2048)] == [1, 1, 1, 2, 12, 16]


def test_a_process_keeps_to_one_core_and_minds_no_ctrl_c(monkeypatch: pytest.MonkeyPatch):
    """Sixteen with sixteen threads each would stand in each other's way, and each would end with a trace."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with working(None, 2, Silent()) as work:
        assert work.results("asking", os.getenv, {"threads": ("OMP_NUM_THREADS",)}) == {"threads": "1"}
        assert work.results("asking", signal.getsignal, {"a": (signal.SIGINT,)}) == {"a": signal.SIG_IGN}
    assert "OMP_NUM_THREADS" not in os.environ


def test_one_command_at_a_time_writes():
    """Another one that would write between its lines is refused; after the first it goes on."""
    path = Path("kept.jsonl")
    with working(path, 1, Silent()) as work:
        work.results("adding", int.__add__, {"a": (1, 2)})
        with pytest.raises(EvditError, match="in use") as error, working(path, 1, Silent()):
            raise AssertionError("nobody gets here")
        assert error.value.exit_code == USAGE
    with working(path, 1, Silent()) as work:
        assert work.known == {"a": 3}


def test_a_process_that_is_lost_is_told():
    """Killed from outside, as for want of memory: exit 1 with what to do, and no trace."""
    with pytest.raises(EvditError, match="ended from outside") as error, working(None, 2, Silent()) as work:
        work.results("leaving", os._exit, {"a": (1,)})
    assert (error.value.exit_code, error.value.next_steps) == (FAILED, ("--workers 1",))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_device_keeps_no_readings():
    """It would be read without an end."""
    with pytest.raises(EvditError, match="/dev/full is no regular file"), working(Path("/dev/full"), 1, Silent()):
        pass
