"""Two folders: who is paired with whom, what is said of those alone, equal sides, frames as they were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.clips import pixels, pixels_of
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.video_file import write_video
from vdit_cli.data.shapes_world import caption, draw_scenes
from vdit_cli.errors import EvditError
from vdit_cli.evaluation import comparison
from vdit_cli.evaluation.comparison import NO_PIXELS, Comparison, compare, paired
from vdit_cli.evaluation.score import ClipScore, Score
from vdit_cli.evaluation.shape_reading import Reading
from vdit_cli.evaluation.videos import Video, find_videos, videos_at
from vdit_cli.timing import Silent


def video(name: str, prompt: str | None, seed: int | None) -> Video:
    """A video that is only named."""
    return Video(Path(name), name, prompt, seed)


def test_videos_are_paired_by_prompt_and_seed():
    """Whatever their names and order; the first of several alike with the first; another seed is no partner."""
    a = [video("0", "red", 1), video("1", "red", 2), video("2", "blue", 1), video("3", "red", 2), video("4", "red", 9)]
    b = [video("x", "blue", 1), video("y", "red", 2), video("z", "red", 2), video("4", "red", 8), video("w", "red", 1)]
    assert paired(a, b) == [(0, 4), (1, 1), (2, 0), (3, 2)]


def test_without_a_seed_the_name_tells():
    """Where one of the two has none, with the same prompt, whatever the suffix; who is taken is taken."""
    a = [video("0.mp4", "red", None), video("1.mp4", None, None), video("2.mp4", "red", 4), video("3.mp4", "red", None)]
    b = [video("0", "red", 7), video("1", None, None), video("2", "red", None), video("3", "blue", None)]
    assert paired(a, b) == [(0, 0), (1, 1), (2, 2)]
    assert paired([video("0", "red", 1), video("1", "red", None)], [video("1", "red", 1)]) == [(0, 0)]


def test_without_a_prompt_the_name_tells_too():
    """A seed alone is that of any number of videos; of equal names two seeds must not differ."""
    a = [video("0.mp4", None, 7), video("1.mp4", None, 8), video("2.mp4", None, 9), video("3.mp4", None, 5)]
    b = [video("1", None, 7), video("0", None, 7), video("2", None, 8), video("3", None, None)]
    assert paired(a, b) == [(0, 1), (3, 3)]


def test_pairs_without_a_prompt_are_told(tmp_path: Path):
    """What they share is their name alone."""
    for number, frames in enumerate(pixels_of(66, 2)[1]):
        for side in ("a", "b"):
            about = {"seed": "0"} | ({"prompt": "a ring"} if number else {})
            write_video(tmp_path / side / f"{number}.mp4", frames, 8, about)
    progress = Silent()
    assert compare([tmp_path / "a"], tmp_path / "b", progress).pairs == [(0, 0), (1, 1)]
    assert progress.lines[0] == "1 of 2 pairs are of equal names alone: no prompt of theirs is known"


def test_who_is_taken_is_not_gathered_anew_for_each_clip(monkeypatch: pytest.MonkeyPatch):
    """Once, however many clips have no seed."""
    made = []
    monkeypatch.setattr(comparison, "set", lambda *given: made.append(1) or set(*given), raising=False)
    a, b = ([video(f"{number}", "red", None) for number in range(50)] for _ in range(2))
    assert paired(a, b) == [(number, number) for number in range(50)] and len(made) == 1


def test_who_is_alone_is_found_in_one_walk_over_the_pairs():
    """One for each side, however many clips there are."""
    walks = []

    class Pairs(list):
        def __iter__(self):
            walks.append(1)
            return super().__iter__()

    clips = tuple(ClipScore(str(number), None, Reading(), {}, None, None) for number in range(50))
    pairs = Pairs((number, number) for number in range(0, 50, 2))
    alone = Comparison(Score(clips), Score(clips), pairs, {}, None).unpaired
    assert alone == dict.fromkeys("ab", [str(number) for number in range(1, 50, 2)]) and len(walks) == 2


def test_the_seed_comes_from_the_receipt_or_the_metadata(tmp_path: Path):
    """As a number and as text; anything else is none."""
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    for name, seed in (("0", "7"), ("1", "-7"), ("2", "x")):
        write_video(tmp_path / f"{name}.mp4", frames, 8, {"prompt": "red", "seed": seed})
    write_video(tmp_path / "3.mp4", frames, 8)
    write_json(tmp_path / "3.json", {"asked": {"prompt": "blue", "seed": 5}})
    write_json(tmp_path / "2.json", {"asked": {"prompt": "blue", "seed": True}})
    found = [(each.prompt, each.seed) for each in videos_at([tmp_path], Silent())]
    assert found == [("red", 7), ("red", None), ("blue", None), ("blue", 5)]


def test_a_folder_against_itself(tmp_path: Path):
    """Every difference is exactly 0, its interval too; every frame is equal."""
    scenes, videos = pixels_of(61, 3)
    for number, (scene, frames) in enumerate(zip(scenes, videos, strict=True)):
        write_video(tmp_path / "a" / f"{number}", frames, 8, {"prompt": caption(scene), "seed": "0"})
    found = compare([tmp_path / "a"], tmp_path / "a", Silent(), world=True)
    assert {each.value for each in found.differences.values()} == {0}
    assert {each.interval for each in found.differences.values()} <= {(0, 0), None}
    assert not any(each.is_off_zero for each in found.differences.values())
    assert {name: each.value for name, each in found.closeness.items()} == {"ssim": 1, "equal": 1}
    assert found.a.frechet == found.b.frechet and found.unpaired == {"a": [], "b": []}
    assert found.content()["against"]["accuracy"] == found.content()["accuracy"]


def test_two_folders(tmp_path: Path):
    """B is wrong in one of two pairs, its third clip is alone; of folders of PNGs PSNR and SSIM are told."""
    scenes = draw_scenes(62, 4, two_objects=0.0)
    for number, scene in enumerate(scenes):
        about = {"prompt": caption(scenes[number]), "seed": "3"}
        if number < 3:
            write_video(tmp_path / "a" / f"{number}", pixels(scene), 8, about)
        if number != 2:
            shown = scenes[2] if number == 1 else scene
            write_video(tmp_path / "b" / f"{number + 5}", pixels(shown) ^ 1, 8, about)
    progress = Silent()
    found = compare([tmp_path / "a"], tmp_path / "b", progress)
    assert found.pairs == [(0, 0), (1, 1)] and found.unpaired == {"a": ["2"], "b": ["8"]}
    assert progress.lines == ["1 of 3 videos of A have no partner: 2", "1 of 3 videos of B have no partner: 8"]
    everything = found.differences["everything"]
    assert (everything.value, everything.clips, everything.interval) == (0.5, 2, (0, 1))
    assert found.a.accuracy["everything"] == 1 and found.b.accuracy["everything"] == 2 / 3
    assert found.closeness["psnr"].clips == 2 and 0 < found.closeness["ssim"].value < 1
    against = found.content()["against"]
    assert against["pairs"] == [["0", "5"], ["1", "6"]] and against["closeness_left_out"] is None
    assert against["differences"]["everything"] == {"value": 0.5, "of": 2, "prompts": 2, "interval": [0, 1]}


def test_what_a_codec_has_touched_is_not_compared(tmp_path: Path):
    """One mp4 on a side leaves PSNR and SSIM out, and that is said; folders without a pair are refused unread."""
    scenes, videos = pixels_of(63, 1)
    for name in ("a", "b.mp4"):
        write_video(tmp_path / name, videos[0], 8, {"prompt": caption(scenes[0]), "seed": "0"})
    progress = Silent()
    found = compare([tmp_path / "a"], tmp_path / "b.mp4", progress)
    assert progress.lines == [NO_PIXELS] and found.closeness == {} and found.left_out == NO_PIXELS
    write_video(tmp_path / "c.mp4", videos[0], 8, {"prompt": caption(scenes[0]), "seed": "1"})
    with pytest.raises(EvditError, match="no video has a partner"):
        compare([tmp_path / "b.mp4"], tmp_path / "c.mp4", Silent())


@pytest.mark.parametrize("seeds", [("0", "1"), ("", "")])
def test_the_seeds_of_one_prompt_belong_together(tmp_path: Path, seeds: tuple[str, str]):
    """No interval comes from one prompt alone; each of its videos, with a seed or without, has a world of its own."""
    scene = draw_scenes(64, 1)[0]
    for number, seed in enumerate(seeds):
        about = {"prompt": caption(scene)} | ({"seed": seed} if seed else {})
        write_video(tmp_path / "a" / f"{number}", pixels(scene, frames=12) ^ (2 * number), 8, about)
        write_video(tmp_path / "b" / f"{number}", pixels(scene, frames=12) ^ (2 * number + 1), 8, about)
    kept = tmp_path / "kept.jsonl"
    found = compare([tmp_path / "a"], tmp_path / "b", Silent(), kept=kept, world=True)
    assert {each.interval for each in (*found.differences.values(), *found.a.estimates.values())} == {None}
    assert found.closeness["psnr"].clips == 2 and found.closeness["psnr"].interval is None
    keys = [json.loads(line).get("key", "") for line in kept.read_text(encoding="utf-8").splitlines()]
    assert sum(key.startswith("world ") for key in keys) == 2 and sum(key.startswith("video ") for key in keys) == 4
    assert found.a.frechet.floor > 0 and found.a.frechet.floor == found.b.frechet.floor


def test_a_folder_of_frames_has_its_whole_name(tmp_path: Path):
    """Dots in it are no suffix: neither its partner nor its receipt is another's."""
    scenes = draw_scenes(64, 2, two_objects=0.0)
    for side in ("a", "b"):
        for number, scene in enumerate(scenes):
            write_video(tmp_path / side / str(number), pixels(scene), 8, {"prompt": caption(scenes[0])})
            (tmp_path / side / str(number)).rename(tmp_path / side / f"take.{number}")
    (tmp_path / "a" / "take.json").write_text('{"asked": {"prompt": "a white cross"}}', encoding="utf-8")
    found = compare([tmp_path / "a"], tmp_path / "b", Silent())
    assert found.pairs == [(0, 0), (1, 1)] and {clip.prompt for clip in found.a.clips} == {caption(scenes[0])}


def test_hidden_files_are_no_frames(tmp_path: Path):
    """As macOS and editors leave them beside the frames of a folder, or alone in one."""
    scene = draw_scenes(65, 1, two_objects=0.0)[0]
    for side in ("a", "b"):
        write_video(tmp_path / side / "clip", pixels(scene), 8, {"prompt": caption(scene)})
    frame = next((tmp_path / "b" / "clip").glob("*.png"))
    (tmp_path / "b" / "clip" / "._00000.png").write_bytes(b"not a picture")
    (tmp_path / "b" / "clip" / ".00000.png").write_bytes(frame.read_bytes())
    for name in (".DS_Store", ".00000.png"):
        (tmp_path / "b" / "empty").mkdir(exist_ok=True)
        (tmp_path / "b" / "empty" / name).write_bytes(b"")
    found = compare([tmp_path / "a"], tmp_path / "b", Silent())
    assert found.closeness["equal"].value == 1 and found.b.accuracy["everything"] == 1
    with pytest.raises(EvditError, match="empty holds no video"):
        find_videos(tmp_path / "b" / "empty")
