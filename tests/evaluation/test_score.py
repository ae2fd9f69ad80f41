"""Scoring: what counts as right, where prompts come from, what is refused."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.clips import pixels, pixels_of
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.video_file import read_frames, read_metadata, read_video, write_video
from vdit_cli.data.shapes_world import caption, draw_scenes
from vdit_cli.errors import MOST_LISTED, USAGE, EvditError
from vdit_cli.evaluation import videos
from vdit_cli.evaluation.comparison import compare
from vdit_cli.evaluation.score import MEASURES, judge, score, score_tensors
from vdit_cli.evaluation.shape_reading import MOST_FRAMES, ObjectReading, Reading, read_attributes, read_stream
from vdit_cli.evaluation.videos import find_source
from vdit_cli.timing import Silent

FITS = {"circle": 0.9, "square": 0.8, "triangle": 0.6, "ring": 0.5, "cross": 0.7}
RED = ObjectReading("large", "red", "circle", "bouncing", 26.0, FITS, dict.fromkeys(FITS, 0.01), 0.5)
BLUE = ObjectReading("small", "blue", "square", "circling", 14.0, FITS, dict.fromkeys(FITS, 0.02), 0.2)
ONE = Reading("black", (RED,))
TWO = Reading("gray", (RED, BLUE))


def test_a_right_clip_is_right_in_everything():
    """The five attributes, all of them, and the number of objects."""
    clip = judge(ONE, "a large red circle bouncing over a black background")
    names = ["size", "colour", "shape", "motion", "background", "all five", "objects", "everything"]
    assert clip.right == dict.fromkeys(names, True)
    assert (clip.fit.overlap, clip.fit.jitter, clip.fit.residual) == (0.9, 0.01, 0.5)


def test_each_wrong_word_counts_once():
    """One wrong attribute spoils itself and `all five`."""
    clip = judge(ONE, "a large red cross bouncing over a black background")
    assert [name for name, right in clip.right.items() if not right] == ["shape", "all five", "everything"]
    assert clip.fit.overlap == 0.7


def test_objects_are_matched_by_colour():
    """In any order, and a second object that is missing or wrong is told."""
    sentence = "a small blue square circling over a gray background, and a large red circle bouncing"
    assert all(judge(TWO, sentence).right.values())
    assert judge(TWO, sentence).fit.residual == 0.2
    wrong = judge(TWO, sentence.replace("bouncing", "growing")).right
    assert [name for name, right in wrong.items() if not right] == ["second object", "everything"]
    missing = judge(Reading("gray", (BLUE,)), sentence).right
    assert [name for name, right in missing.items() if not right] == ["objects", "second object", "everything"]


def test_what_a_prompt_leaves_open_is_not_judged():
    """Nor is a clip without a prompt, or with one from another world."""
    assert judge(ONE, "a red circle").right == dict.fromkeys(["colour", "shape", "objects", "everything"], True)
    assert judge(ONE, None).right == judge(ONE, "two cats on Mars").right == {}


def test_an_unreadable_clip_is_wrong_in_everything():
    """It counts against the accuracy, and has no fit."""
    clip = judge(Reading(unreadable="noise"), "a large red circle bouncing over a black background")
    assert len(clip.right) == 8 and not any(clip.right.values()) and clip.fit is None


def test_tensors_one_by_one_and_in_processes():
    """The same scores; other counts and arrays are refused."""
    scenes, videos = pixels_of(21, 6, two_objects=0.5)
    sentences = [caption(scene) for scene in scenes]
    found = score_tensors(videos, sentences)
    assert found.counts["all five"] == (6, 6)
    assert score_tensors(videos, sentences, workers=2) == found
    content = found.content()
    assert content["accuracy"]["size"] == {"right": 6, "of": 6, "share": 1.0}
    with pytest.raises(ValueError):
        score_tensors(videos, sentences[:2])
    with pytest.raises(ValueError, match="uint8"):
        score_tensors([np.zeros((2, 8, 8, 3))], sentences[:1])
    nothing = score_tensors([], [])
    assert nothing.counts == {} and nothing.measures == dict.fromkeys(MEASURES)


def test_prompts_come_from_the_receipt_or_the_metadata(tmp_path: Path):
    """The receipt beside the video wins; a folder is read in the order of names, what is no video left out."""
    scenes = draw_scenes(22, 3, two_objects=0.0)
    for number, scene in enumerate(scenes):
        metadata = {"prompt": caption(scene)} if number < 2 else None
        write_video(tmp_path / f"{number}.mp4", pixels(scene), 8, metadata)
    write_json(tmp_path / "1.json", {"schema": "evdit.receipt/1", "asked": {"prompt": "a white cross"}})
    write_json(tmp_path / "run.json", {"schema": "evdit.run/1"})
    write_video(tmp_path / "frames", pixels(scenes[0], frames=3), 8)
    prompts = [find_source(tmp_path / f"{number}.mp4", Silent()).prompt for number in range(3)]
    assert prompts == [caption(scenes[0]), "a white cross", None]
    found = score([tmp_path])
    assert [clip.name for clip in found.clips] == ["0.mp4", "1.mp4", "2.mp4", "frames"]
    assert [len(clip.right) for clip in found.clips] == [8, 4, 0, 0]
    given = score([tmp_path / "2.mp4", tmp_path / "0.mp4"], [caption(scenes[2]), caption(scenes[0])])
    assert given.accuracy["all five"] == 1
    assert score([tmp_path / "frames"]).clips[0].reading.background == scenes[0].background


def test_a_video_without_a_receipt_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And one that another takes the place of in the meantime is refused: its prompt would be of other bytes."""
    frames = pixels(draw_scenes(23, 1)[0], frames=2)
    for name, prompt in (("a", "a small red circle"), ("b", "a large blue ring")):
        write_video(tmp_path / f"{name}.mp4", frames, 8, {"prompt": prompt})
    opened: list[Path] = []
    monkeypatch.setattr(videos, "read_metadata", lambda path: opened.append(path) or read_metadata(path))
    assert find_source(tmp_path / "a.mp4", Silent()).prompt == "a small red circle" and len(opened) == 1
    monkeypatch.setattr(
        videos, "read_metadata", lambda path: (read_metadata(path), (tmp_path / "b.mp4").replace(path))[0]
    )
    with pytest.raises(EvditError, match="a.mp4 changed while it was read"):
        find_source(tmp_path / "a.mp4", Silent())


def test_the_receipt_of_another_video_is_not_asked(tmp_path: Path):
    """A digest that is not this video's: its own metadata is taken, and that is said. Hidden files are no videos."""
    frames = pixels(draw_scenes(23, 1)[0], frames=2)
    write_video(tmp_path / "a.mp4", frames, 8, {"prompt": "a small red circle"})
    (tmp_path / ".evdit-0123abcd.mp4").write_bytes(b"half")
    for digest, prompt in ((path_digest(tmp_path / "a.mp4"), "a large blue ring"), ("0" * 64, "a small red circle")):
        content = {"asked": {"prompt": "a large blue ring"}, "output_sha256": digest}
        (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
        progress = Silent()
        (clip,) = score([tmp_path], progress=progress).clips
        assert clip.prompt == prompt
        is_other = any("a.json is the receipt of another video" in line for line in progress.lines)
        assert is_other == (digest == "0" * 64)


def test_what_can_not_be_scored_is_refused(tmp_path: Path):
    """Missing, empty, no video, damaged, other numbers of prompts, a receipt that is not JSON: exit 2 each."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("a", encoding="utf-8")
    (tmp_path / "bad.mp4").write_bytes(b"not a video")
    write_video(tmp_path / "good.mp4", pixels(draw_scenes(23, 1)[0], frames=2), 8)
    cases = [(tmp_path / name, None) for name in ("absent.mp4", "empty", "text.txt", "bad.mp4")]
    for path, prompts in [*cases, (tmp_path / "good.mp4", ["one", "two"])]:
        with pytest.raises(EvditError) as error:
            score([path], prompts)
        assert error.value.exit_code == USAGE
    for content in ("{", "[" * 1000, '{"asked": {"seed": ' + "7" * 5000 + "}}"):
        (tmp_path / "good.json").write_text(content, encoding="utf-8")
        with pytest.raises(EvditError, match="not a receipt: it is (not JSON|nested)") as error:
            score([tmp_path / "good.mp4"])
        assert error.value.where == str(tmp_path / "good.json")
        assert "move it away" in error.value.next_steps[0]


@pytest.mark.parametrize(
    ("content", "place", "words"),
    [
        ({"asked": 5}, " asked", "asked is 5: it must be an object"),
        ({"asked": {"prompt": ["a"]}}, " asked.prompt", "it must be a text or null"),
        ({"asked": {}, "output_sha256": 7}, " output_sha256", "it must be a text or null"),
        ({"asked": {}, "output_sha256": "0" * 63 + "g"}, "", "...: it must be 64 hexadecimal digits"),
    ],
)
def test_a_damaged_receipt_is_told_and_not_taken_for_anothers(tmp_path: Path, content: dict, place: str, words: str):
    """By its key, and what to do."""
    write_video(tmp_path / "a.mp4", pixels(draw_scenes(23, 1)[0], frames=2), 8)
    (tmp_path / "a.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(EvditError) as error:
        score([tmp_path])
    assert words in error.value.what and error.value.where == f"{tmp_path / 'a.json'}{place}"
    assert "move it away" in error.value.next_steps[-1]


def test_all_that_is_damaged_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first of many by name, when they are opened; and again what is found further on in others, in any process."""
    video = tmp_path / "whole.mp4"
    write_video(video, pixels(draw_scenes(23, 1)[0]), 8)
    for number in range(MOST_LISTED + 3):
        (tmp_path / f"bad-{number:02d}.mp4").write_bytes(b"no video")
    (tmp_path / "whole.json").write_text("{", encoding="utf-8")
    with pytest.raises(EvditError) as error:
        score([tmp_path])
    told = error.value.what
    assert told.startswith(f"{MOST_LISTED + 4} of {MOST_LISTED + 4} videos can't be read: ") and told.endswith(
        "; and 4 more"
    )
    assert [f"bad-{number:02d}.mp4" in told for number in range(MOST_LISTED + 1)] == [True] * MOST_LISTED + [False]
    assert error.value.exit_code == USAGE and "make it again" in error.value.next_steps

    cut = tmp_path / "cut"
    cut.mkdir()
    for number, name in enumerate(("a", "b", "c")):
        write_video(cut / f"{name}.gif", pixels(draw_scenes(30 + number, 1)[0]), 8)
    for name in ("a", "c"):
        content = (cut / f"{name}.gif").read_bytes()
        (cut / f"{name}.gif").write_bytes(content[: len(content) * 2 // 3])
    for workers in (1, 2):
        with pytest.raises(EvditError, match="^reading failed for 2: ") as error:
            score([cut], kept=tmp_path / "kept.jsonl", workers=workers)
        assert [str(cut / f"{name}.gif") in error.value.what for name in ("a", "b", "c")] == [True, False, True]
    assert len((tmp_path / "kept.jsonl").read_text(encoding="utf-8").splitlines()) == 2, "the whole one is kept"


def test_a_seed_that_can_be_none_is_refused(tmp_path: Path):
    """Of a receipt or of metadata, beyond 64 bits, 5,000 digits among them; the largest one is taken."""
    frames = pixels(draw_scenes(23, 1)[0], frames=2)
    for name, seed in (("long", "7" * 5000), ("more", "1" + "0" * 20), ("most", str(2**64 - 1))):
        write_video(tmp_path / f"{name}.gif", frames, 8, {"prompt": "a ring", "seed": seed})
    assert find_source(tmp_path / "most.gif", Silent()).seed == 2**64 - 1
    (tmp_path / "most.json").write_text(json.dumps({"asked": {"prompt": "a ring", "seed": 10**20}}), encoding="utf-8")
    for name, place, digits in (("long", "long.gif", 5000), ("more", "more.gif", 21), ("most", "most.json", 21)):
        with pytest.raises(EvditError, match=f"{place} tells a seed of {digits} digits") as error:
            score([tmp_path / f"{name}.gif"])
        assert error.value.exit_code == USAGE


def test_brackets_without_an_end_are_no_metadata(tmp_path: Path):
    """A comment that another program could have written."""
    Image.new("RGB", (16, 16)).save(tmp_path / "odd.gif", comment=b"[" * 2000)
    assert read_metadata(tmp_path / "odd.gif") == {}


def test_a_damaged_video_among_others_is_named(tmp_path: Path):
    """With what to do, whether its tags or its frames can't be read, in this process and in others."""
    scene = draw_scenes(25, 1)[0]
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", pixels(scene, frames=9) ^ number, 8)
    whole = (tmp_path / "1.mp4").read_bytes()
    header = whole.index(b"mdat")
    for content in (b"not a video", whole[: header + 40] + bytes(len(whole) - header - 40)):
        (tmp_path / "1.mp4").write_bytes(content)
        for workers in (1, 2):
            with pytest.raises(EvditError, match="1.mp4 can't be read as a video") as error:
                score([tmp_path], workers=workers)
            assert "move it out of the folder and give the same command again" in error.value.next_steps
            assert error.value.where == str(tmp_path / "1.mp4")


def test_frames_that_are_called_otherwise(tmp_path: Path):
    """The message says how frames are called."""
    write_video(tmp_path / "frames", pixels(draw_scenes(26, 1)[0], frames=2), 8)
    for file in (tmp_path / "frames").iterdir():
        file.rename(file.with_name(file.name[1:]))
    with pytest.raises(EvditError, match=r"names of five digits or more \(00000.png, 00001.png, ...\)"):
        score([tmp_path / "frames"])


def test_a_video_that_is_there_twice_counts_once(tmp_path: Path):
    """A copy, or a path that is given twice, which is said; equal bytes of another prompt or seed are another video."""
    frames = [pixels(scene, frames=5) for scene in draw_scenes(27, 2)]
    write_video(tmp_path / "0.mp4", frames[0], 8, {"prompt": "a red ring", "seed": "0"})
    for name in ("1.mp4", "2.mp4", "3.mp4"):
        shutil.copy(tmp_path / "0.mp4", tmp_path / name)
    write_json(tmp_path / "2.json", {"asked": {"prompt": "a red ring", "seed": 1}})
    write_json(tmp_path / "3.json", {"asked": {"prompt": "a blue ring", "seed": 0}})
    write_video(tmp_path / "4.mp4", frames[1], 8, {"prompt": "a red ring", "seed": "0"})
    progress = Silent()
    found = score([tmp_path, tmp_path / "4.mp4"], progress=progress)
    assert [clip.name for clip in found.clips] == ["0.mp4", "2.mp4", "3.mp4", "4.mp4"]
    again = [
        f"{tmp_path / copy} is {tmp_path / first} once more" for copy, first in (("1.mp4", "0.mp4"), ("4.mp4",) * 2)
    ]
    assert [line.partition(",")[0] for line in progress.lines] == again
    both = compare([tmp_path], tmp_path, Silent())
    assert (len(both.a.clips), len(both.b.clips), len(both.pairs)) == (4, 4, 4)


def test_frames_of_a_file_are_not_all_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of 29 large frames never more than three are alive, and the reading is that of the whole video at once."""
    video = pixels(draw_scenes(24, 1)[0], size=256)
    write_video(tmp_path / "long.mp4", video, 8)
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def counted(path: Path) -> tuple:
        rate, size, frames = read_frames(path)

        def each():
            nonlocal most
            for frame in frames:
                alive.append(weakref.ref(frame))
                most = max(most, sum(seen() is not None for seen in alive))
                yield frame

        return rate, size, each()

    monkeypatch.setattr("vdit_cli.evaluation.readings.read_frames", counted)
    reading = score([tmp_path / "long.mp4"]).clips[0].reading
    assert len(alive) == 29 and most <= 3
    assert reading == read_attributes(read_video(tmp_path / "long.mp4")[0]) and reading.objects


@pytest.mark.parametrize("size", [(64, 64), (64, 80)])
def test_a_clip_that_goes_on_and_on_is_unreadable(size: tuple[int, int]):
    """It is left at MOST_FRAMES, whatever its size; that is no length of the world's clips."""
    drawn = []

    def endless():
        for number in range(2 * MOST_FRAMES):
            drawn.append(number)
            yield np.zeros((*size, 3), np.uint8)

    assert "more than 1000 frames" in str(read_stream(size, endless()).unreadable)
    assert len(drawn) == MOST_FRAMES + 1


@pytest.mark.parametrize(
    ("prompt", "is_right"),
    [
        ("a large red circle moving left over a black background, and a small square moving right", True),
        ("a large circle, and a small square", True),
        ("a small square, and a large circle", True),
        ("a red circle, and a square", True),
        ("a large red circle moving left over a black background, and a circle", False),
        ("a circle, and a triangle", False),
    ],
)
def test_two_objects_of_which_one_names_no_colour(prompt: str, is_right: bool):
    """Both are compared with different objects, those that agree best."""
    fits = dict.fromkeys(("circle", "square", "triangle"), 0.5)
    red = ObjectReading("large", "red", "circle", "moving left", 26.0, fits, fits, 0.1)
    blue = ObjectReading("small", "blue", "square", "moving right", 14.0, fits, fits, 0.1)
    for objects in ((red, blue), (blue, red)):
        assert judge(Reading("black", objects), prompt).right["everything"] is is_right
    assert not judge(Reading("black", (red,)), prompt).right["second object"]
    assert not judge(Reading(unreadable="nothing"), prompt).right["second object"]
