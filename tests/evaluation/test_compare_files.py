"""What `compare` writes: every pixel at its place, the same bytes each time, few frames in memory, whole or nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.planted import compare, plain_video, plant
from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.artifacts.video_file import read_frames, read_video, write_video
from vdit_cli.errors import FAILED, INTERRUPTED, EvditError, Interrupted
from vdit_cli.evaluation import compare as comparing
from vdit_cli.evaluation.side_by_side import SHEET_FRAMES
from vdit_cli.timing import Silent


def colour(run: int, pair: int, frame: int) -> tuple[int, int, int]:
    """A colour that no other frame has, and neither paper nor letters."""
    return 40 + 50 * run, 30 + 60 * pair, 20 + 15 * frame


def plant_colours(runs: str, pairs: int, frames: int, height: int, width: int) -> None:
    """Runs whose frames have a colour each; the last pair differs least, as its runs are nearly equal."""
    for run, letter in enumerate(runs):
        for pair in range(pairs):
            video = np.empty((frames, height, width, 3), np.uint8)
            video[:] = np.array([colour(run, pair, frame) for frame in range(frames)], np.uint8)[:, None, None]
            video[:, 0, 0] = 255 - 40 * (pairs - pair) * run
            plant(letter, str(pair), video, f"prompt {pair}")


def box_of(picture: np.ndarray, wanted: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) of all pixels of a colour; None where there is none."""
    rows, columns = np.nonzero((picture == wanted).all(axis=-1))
    if not len(rows):
        return None
    return rows.min(), columns.min(), rows.max() - rows.min() + 1, columns.max() - columns.min() + 1


def test_columns_hold_the_runs_to_the_pixel():
    """In their order, one pair after another in time, each frame whole and at its place; labels don't cover it."""
    plant_colours("abc", pairs=2, frames=5, height=20, width=30)
    found = compare("a", "b", "c")
    order = [int(pair.videos[0].path.name) for pair in found.shown]
    pictures, fps = read_video("out")
    assert fps == 8 and len(pictures) == 2 * 5 and sorted(order) == [0, 1]
    for at, picture in enumerate(pictures):
        pair, frame = order[at // 5], at % 5
        boxes = [box_of(picture, colour(run, pair, frame)) for run in range(3)]
        assert all(box is not None and box[2:] == (20, 30) for box in boxes)
        for run, (top, left, height, width) in enumerate(filter(None, boxes)):
            source, _ = read_video(Path("abc"[run], str(pair)))
            assert (picture[top : top + height, left : left + width] == source[frame]).all()
        lefts = [box[1] for box in boxes if box]
        assert lefts == sorted(lefts) and len({box[0] for box in boxes if box}) == 1


def test_the_sheet_has_evenly_spaced_frames_a_row_a_run():
    """Of 11 frames every other one, from left to right; runs of a pair below one another, pairs in their order."""
    plant_colours("ab", pairs=2, frames=11, height=20, width=30)
    found = compare("a", "b", sheet=Path("sheet.png"))
    order = [int(pair.videos[0].path.name) for pair in found.shown]
    picture = np.asarray(Image.open("sheet.png"))
    tops = []
    for pair in order:
        for run in range(2):
            boxes = [box_of(picture, colour(run, pair, frame)) for frame in range(11)]
            assert [at for at, box in enumerate(boxes) if box] == [0, 2, 4, 6, 8, 10]
            shown = [box for box in boxes if box]
            assert [box[2:] for box in shown] == [(20, 30)] * SHEET_FRAMES
            assert len({box[0] for box in shown}) == 1 and [box[1] for box in shown] == sorted(box[1] for box in shown)
            top, left, height, width = shown[1]
            source, _ = read_video(Path("ab"[run], str(pair)))
            assert (picture[top : top + height, left : left + width] == source[2]).all()
            tops.append(top)
    assert tops == sorted(tops) and len(set(tops)) == 4


@pytest.mark.parametrize("output", ["out.mp4", "out.gif", "out.webp"])
def test_the_same_videos_make_the_same_files(output: str):
    """Byte for byte, at the rate of the videos, as many frames as all pairs have."""
    plant_colours("ab", pairs=2, frames=5, height=20, width=30)
    digests = []
    for _ in range(2):
        compare("a", "b", output=output, sheet=Path("sheet.png"), overwrite=True)
        digests.append((path_digest(Path(output)), path_digest(Path("sheet.png"))))
    assert digests[0] == digests[1]
    rate, _, frames = read_frames(output)
    assert (rate, sum(1 for _ in frames)) == (Fraction(8), 10)


def test_files_of_every_kind_are_compared():
    """An mp4 with a receipt's prompt beside it, and a GIF."""
    told = {"asked": {"prompt": "one", "seed": 3}}
    for run, name in (("a", "x.mp4"), ("b", "y.gif")):
        write_video(Path(run, name), plain_video([100, 150, 100], 32, 32), 8)
        Path(run, name).with_suffix(".json").write_text(json.dumps(told))
    (pair,) = compare("a", "b", output="out.mp4").pairs
    assert (pair.videos[0].prompt, pair.videos[0].seed) == ("one", 3) and pair.difference < 0.02 < pair.motion


@pytest.mark.parametrize("output", ["a/0", "b/0", "./a/../a/0"])
def test_no_video_that_is_compared_is_replaced(output: str):
    """Even where it is said to overwrite."""
    plant_colours("ab", pairs=1, frames=2, height=20, width=30)
    before = path_digest(Path(output))
    with pytest.raises(EvditError, match="is one of the videos that are compared"):
        compare("a", "b", output=output, overwrite=True)
    assert path_digest(Path(output)) == before


@pytest.mark.parametrize("output", ["a/both.mp4", "b/both", "./a/../b/both.gif", "c/both.mp4"])
def test_no_output_becomes_a_video_of_a_run(output: str):
    """Of one that is compared, or of another one's: it would be scored and compared with the others of that folder."""
    plant_colours("abc", pairs=1, frames=2, height=20, width=30)
    with RunDir.create(Path("other"), Request("generate", "shapes", {})):
        pass
    Path("other/run.json").rename("c/run.json")
    before = sorted(Path().rglob("*"))
    with pytest.raises(EvditError, match="would lie among the videos of .*, and count as one of them") as caught:
        compare("a", "b", output=output, overwrite=True)
    assert sorted(Path().rglob("*")) == before
    assert (caught.value.where, caught.value.next_steps) == (f"-o {Path(output)}", ("another place with -o",))


def test_an_output_beside_two_videos_is_written():
    """They are the runs, not the folder that they lie in; so is one in the folder of another command's run."""
    plant_colours("ab", pairs=1, frames=2, height=20, width=30)
    Path("run.json").write_text('{"schema": "evdit.run/1", "command": "run"}', encoding="utf-8")
    compare("a/0", "b/0", output="a/both.gif")
    compare("a/0", "b/0", output="both.gif")
    assert Path("a/both.gif").is_file() and Path("both.gif").is_file()


@pytest.mark.parametrize(
    ("moving", "limit", "titles"),
    [(0, 8, [comparing.TITLE]), (1, 8, list(comparing.TITLES.values())), (1, 1, [comparing.TITLE])],
)
def test_the_sheet_says_what_each_half_is(monkeypatch: pytest.MonkeyPatch, moving: int, limit: int, titles: list[str]):
    """Pairs that move less stand under words that say so; where there is one group alone it is of all pairs."""
    for at in range(4):
        first = plain_video([100, 200] if at < moving else [100, 100])
        plant("a", str(at), first, str(at))
        plant("b", str(at), first + np.uint8(20 + at), str(at))
    groups: dict[str, list[str]] = {}
    begin = comparing.Sheet.begin
    monkeypatch.setattr(
        comparing.Sheet,
        "begin",
        lambda sheet, told: (
            groups.update({title: [each.prompt for each in told[title]] for title in told}),
            begin(sheet, told),
        ),
    )
    compare("a", "b", sheet=Path("sheet.png"), limit=limit)
    assert list(groups) == titles
    if len(titles) == 2:
        less, large = groups.values()
        assert (less, large) == (["3", "2", "1"], ["0"]) and "move less" in titles[0]


def test_few_frames_are_in_memory_at_once(monkeypatch: pytest.MonkeyPatch):
    """Of two videos of 40 frames each, and two pairs: counted wherever they are read."""
    for at in range(2):
        for run in ("a", "b"):
            plant(run, str(at), plain_video([at] * 40), str(at))
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def watched(path: Path) -> Any:
        rate, size, frames = read_frames(path)

        def one_by_one() -> Iterator[np.ndarray]:
            nonlocal most
            for frame in frames:
                held = frame.copy()
                del frame
                alive.append(weakref.ref(held))
                most = max(most, sum(each() is not None for each in alive))
                yield held

        return rate, size, one_by_one()

    monkeypatch.setattr(comparing, "read_frames", watched)
    compare("a", "b", sheet=Path("sheet.png"))
    assert len(alive) == 3 * 2 * 2 * 40 and most <= 6


class Watching(Silent):
    """Counts units; at the `at`-th of a stage it does something."""

    def __init__(self, label: str, at: int) -> None:
        super().__init__()
        self.label, self.at = label, at
        self.running, self.done, self.is_there = "", 0, False

    def stage(self, label: str, total: int) -> None:
        self.running, self.done = label, 0

    def advance(self, note: str = "") -> None:
        self.done += 1
        if (self.running, self.done) == (self.label, self.at):
            self.come()

    def come(self) -> None:
        """Ctrl-C, once."""
        self.is_there = True

    def should_stop(self) -> bool:
        return self.is_there


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("comparing", "comparing was done for 1 of 3 pairs"),
        ("writing", "writing was done for 1 of 15 frames"),
        ("sheet", "the sheet was done for 1 of 3 pairs"),
    ],
)
@pytest.mark.parametrize("output", ["out", "out.mp4", "out.gif"])
def test_ctrl_c_leaves_no_file(stage: str, told: str, output: str):
    """Wherever it comes; what stood there before stays."""
    plant_colours("ab", pairs=3, frames=5, height=20, width=30)
    before = sorted(Path().rglob("*"))
    with pytest.raises(Interrupted, match=f"stopped: {told}, and no file was written"):
        compare("a", "b", output=output, sheet=Path("sheet.png"), progress=Watching(stage, 1))
    assert sorted(Path().rglob("*")) == before
    compare("a", "b", output=output, sheet=Path("sheet.png"))
    digests = [path_digest(Path(name)) for name in (output, "sheet.png")]
    with pytest.raises(Interrupted):
        compare("a", "b", output=output, sheet=Path("sheet.png"), overwrite=True, progress=Watching(stage, 1))
    assert [path_digest(Path(name)) for name in (output, "sheet.png")] == digests


@pytest.mark.parametrize("stage", ["comparing", "writing", "sheet"])
def test_a_video_that_changes_meanwhile_is_refused(stage: str):
    """What is shown is what was measured."""
    plant_colours("ab", pairs=2, frames=5, height=20, width=30)

    class Changing(Watching):
        """Makes both videos of run b anew."""

        def come(self) -> None:
            for name in ("0", "1"):
                write_video(Path("b", name), plain_video([9] * 5, 20, 30), 8, overwrite=True)

    with pytest.raises(EvditError, match="changed while it was read") as caught:
        compare("a", "b", sheet=Path("sheet.png"), progress=Changing(stage, 1))
    assert caught.value.exit_code == FAILED and not Path("out").exists() and not Path("sheet.png").exists()


ENDED = """
import os, signal, sys
from vdit_cli.cli import console
from vdit_cli.cli.app import main

def advance(self, note=""):
    global done
    done += 1
    if done == 5:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))

done = 0
console.Console.advance = advance
sys.exit(main(["compare", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_process_that_is_ended_leaves_no_half_file(how: str):
    """At the second frame that is written; the same command then does it all."""
    plant_colours("ab", pairs=3, frames=5, height=20, width=30)
    args = ["a", "b", "-o", "out.mp4", "--sheet", "sheet.png"]
    done = subprocess.run([sys.executable, "-c", ENDED, how, *args], capture_output=True, encoding="utf-8")
    assert done.returncode == (INTERRUPTED if how == "SIGINT" else -signal.SIGKILL), done.stderr
    assert done.stdout == "" and not os.path.lexists("out.mp4") and not os.path.lexists("sheet.png")
    done = subprocess.run([sys.executable, "-m", "vdit_cli", "compare", *args], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and done.stdout.endswith("wrote out.mp4\nwrote sheet.png\n")
    assert sorted(path.name for path in Path().iterdir()) == ["a", "b", "out.mp4", "sheet.png"]
