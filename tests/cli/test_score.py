"""`evdit score` as a person runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.clips import pixels
from vdit_cli.artifacts.video_file import write_video
from vdit_cli.cli.models import table
from vdit_cli.cli.score import fitting
from vdit_cli.data.shapes_world import caption, draw_scenes
from vdit_cli.errors import INTERRUPTED
from vdit_cli.evaluation import comparison, score
from vdit_cli.evaluation.work import working


def folder_of_videos(folder: Path) -> list[str]:
    """Two right clips, one with another's prompt, one of noise; returns the prompts of the first two."""
    scenes = draw_scenes(31, 3, two_objects=0.0)
    prompts = [caption(scene) for scene in scenes]
    for number, scene in enumerate(scenes):
        write_video(folder / f"{number}.mp4", pixels(scene), 8, {"prompt": prompts[number if number < 2 else 0]})
    noise = np.random.default_rng(0).integers(0, 256, (9, 128, 128, 3), dtype=np.uint8)
    write_video(folder / "noise.mp4", noise, 8, {"prompt": prompts[0]})
    return prompts


def test_a_folder_as_a_table(evdit, tmp_path: Path):
    """A row a video, what is wrong in it, accuracy below; progress on stderr only."""
    prompts = folder_of_videos(tmp_path)
    code, out, err = evdit("score", str(tmp_path))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["video", "size", "colour", "shape", "motion", "background", "objects", "IoU", "wrong"]
    assert all(word in lines[1] for word in prompts[0].split() if word not in ("a", "over", "background"))
    assert lines[3].endswith("motion") and "noise.mp4" in lines[4] and "unreadable" in lines[4]
    told = {line.partition("  ")[0]: line.split()[1:] for line in lines[6:]}
    assert told["unreadable"] == ["0.250", "[0.000,", "0.333]", "4"], "one prompt has three clips, the other one"
    assert "2/4 = 0.500" in out and "Frechet" not in out
    assert "reading" in err and "reading:" not in out


def test_json_on_stdout(evdit, tmp_path: Path):
    """One object with its schema; null where nothing was read."""
    prompts = folder_of_videos(tmp_path)
    code, out, _ = evdit("score", str(tmp_path), "--json")
    content = json.loads(out)
    assert code == 0 and content["schema"] == "evdit.score/1"
    assert (content["clips"], content["unreadable"]) == (4, 1)
    assert content["accuracy"]["all five"] == {"right": 2, "of": 4, "share": 0.5}
    assert content["videos"][0]["prompt"] == prompts[0]
    assert content["videos"][3]["objects"] == [] and content["videos"][3]["fit"] is None


def test_a_video_without_a_prompt_is_read(evdit, tmp_path: Path):
    """Nothing is right or wrong about it."""
    write_video(tmp_path / "one.mp4", pixels(draw_scenes(32, 1, two_objects=0.0)[0]), 8)
    code, out, _ = evdit("score", "one.mp4")
    assert code == 0 and "(no prompt)" in out and "right" not in out


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_leaves_no_half_score(evdit, tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch):
    """In the midst of the second of four: exit 130, how many were read, nothing on stdout. In the last: the score."""
    folder_of_videos(tmp_path)

    def see_and_interrupt(path: Path, digest: str) -> dict[str, Any]:
        if path.name == at:
            signal.raise_signal(signal.SIGINT)
        return see_video(path, digest)

    see_video = score.see_video
    monkeypatch.setattr(score, "see_video", see_and_interrupt)
    at = "1.mp4"
    code, out, err = evdit("score", str(tmp_path), *flags)
    assert (code, out) == (INTERRUPTED, "")
    assert "error: stopped: reading was done for 2 of 4, which is no score yet" in err
    at = "noise.mp4"
    code, out, _ = evdit("score", str(tmp_path), *flags)
    assert code == 0 and "noise.mp4" in out


def test_errors(evdit, tmp_path: Path):
    """Missing, empty, damaged, a FIFO, nothing named: exit 2, nothing on stdout."""
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    for args in (["absent.mp4"], ["empty"], ["bad.mp4"], ["fifo.mp4"], []):
        code, out, err = evdit("score", *args)
        assert code == 2 and out == "" and "error: " in err
    code, _, err = evdit("score", "bad.mp4", "absent.mp4")
    assert code == 2 and err.startswith("error: absent.mp4 is not there"), "before anything is read"


def test_readings_are_kept_where_a_link_leads(evdit, tmp_path: Path):
    """Its folder is made, as that of a name without a link is."""
    prompted(tmp_path / "videos", 1)
    (tmp_path / "kept.jsonl").symlink_to("new/folder/kept.jsonl")
    code, _, err = evdit("score", "videos", "-o", "kept.jsonl")
    assert code == 0, err
    assert (tmp_path / "kept.jsonl").is_symlink() and (tmp_path / "new" / "folder" / "kept.jsonl").stat().st_size


def prompted(folder: Path, count: int, spoiled: int = 0, frames: int = 29) -> None:
    """Clips of as many prompts, seed 0 each; the first `spoiled` show another prompt's scene."""
    scenes = draw_scenes(33, count, two_objects=0.0)
    for number, scene in enumerate(scenes):
        shown = pixels(scenes[(number + 1) % count] if number < spoiled else scene, frames=frames)
        write_video(folder / f"{number:02d}.mp4", shown, 8, {"prompt": caption(scene), "seed": "0"})


def test_against_another_folder(evdit, tmp_path: Path):
    """Both sides, the differences, a * where one is off 0; who has no partner and what is left out, on stderr."""
    prompted(tmp_path / "a", 9)
    prompted(tmp_path / "b", 8, spoiled=6)
    code, out, err = evdit("score", "a", "--against", "b", "-o", "kept.jsonl")
    assert code == 0 and "1 of 9 videos of A have no partner: 08.mp4" in err and "PSNR and SSIM are left out" in err
    lines = out.splitlines()
    assert lines[0].split()[0] == "A" and lines[11].split()[0] == "B"
    told = {line.partition("  ")[0]: re.split("  +", line)[1:] for line in lines[21:]}
    assert told[""] == ["A", "95 %", "B", "95 %", "A - B", "95 %", "pairs"]
    assert told["all five"][0] == "1.000" and told["all five"][2] == "0.250"
    assert told["all five"][4] == "+0.750 *" and told["all five"][6] == "8"
    assert told["unreadable"][4:] == ["+0.000", "[+0.000, +0.000]", "8"]
    code, out, err = evdit("score", "a", "--against", "b", "--world", "-o", "kept.jsonl", "--json")
    content = json.loads(out)
    assert code == 0 and content["schema"] == "evdit.score/1" and "reading: 9 of 9 are there already" in err
    assert (content["frechet"]["clips"], content["against"]["frechet"]["clips"]) == (9, 8)
    assert content["against"]["differences"]["all five"]["value"] == 0.75
    assert content["against"]["unpaired"] == {"a": ["08.mp4"], "b": []}
    code, out, err = evdit("score", "a", "--against", "absent")
    assert (code, out) == (2, "") and "error: absent is not there" in err


def test_a_comparison_fits_a_terminal():
    """Of 80 columns: what differs stands below the sides, without rows that say nothing there; elsewhere in one row."""
    rows = [("", "A", "95 %", "B", "95 %", "A - B", "95 %", "pairs")]
    rows += [("motion: standing still", *("0.123", "[0.123, 0.123]") * 2, "+0.123 *", "[+0.123, +0.123]", "2048")]
    rows += [("Frechet distance", "1.5", "", "1.25", "", "", "", "")]
    whole = table(rows)
    assert fitting(rows, None) == whole and max(map(len, whole)) > 80
    assert fitting(rows, 200) == whole
    told = fitting(rows, 80)
    assert max(map(len, told)) <= 80
    assert [re.split("  +", line.strip()) for line in told] == [
        ["A", "95 %", "B", "95 %"],
        ["motion: standing still", "0.123", "[0.123, 0.123]", "0.123", "[0.123, 0.123]"],
        ["Frechet distance", "1.5", "1.25"],
        [""],
        ["A - B", "95 %", "pairs"],
        ["motion: standing still", "+0.123 *", "[+0.123, +0.123]", "2048"],
    ]
    alone = [("", "mean", "95 %", "of"), ("all five " * 12, "1/2", "-", "2")]
    assert fitting(alone, 80) == table(alone)


def test_of_many_only_the_summary_is_printed(evdit, tmp_path: Path):
    """And the world is rendered for them, unless it is not wanted; of few both are asked for."""
    prompted(tmp_path / "many", score.FEW + 1, frames=5)
    code, out, err = evdit("score", "many", "-o", "kept.jsonl", "--workers", "1")
    assert code == 0 and ".mp4" not in out and out.splitlines()[0].split() == ["mean", "95", "%", "of"]
    assert re.search(r"^Frechet distance +[\d.]+ +21$", out, re.M) and "of the world to itself" in out
    assert "rendering the world: 21/21" in err
    told = evdit("score", "many", "--each", "--no-world", "-o", "kept.jsonl")[1]
    assert told.count(".mp4") == 21 and "Frechet" not in told
    (tmp_path / "two").mkdir()
    for name in ("03.mp4", "04.mp4"):
        shutil.copy(tmp_path / "many" / name, tmp_path / "two")
    both = json.loads(evdit("score", "two", "--against", "many", "-o", "kept.jsonl", "--json")[1])
    assert (both["frechet"]["clips"], both["against"]["frechet"]["clips"]) == (2, 21), "of both sides or of neither"
    few = evdit("score", "many/00.mp4", "many/01.mp4", "--world", "-o", "kept.jsonl")[1]
    assert "Frechet distance" in few and few.count(".mp4") == 2


def test_prompts_of_no_world_have_no_distance(evdit, tmp_path: Path):
    """Which is said, and so is that one clip alone has none."""
    scene = draw_scenes(34, 1)[0]
    for number, prompt in enumerate(("two cats", caption(scene))):
        write_video(tmp_path / f"{number}.mp4", pixels(scene, frames=3), 8, {"prompt": prompt})
    code, out, err = evdit("score", "0.mp4", "1.mp4", "--world")
    assert code == 0 and "Frechet" not in out
    assert "1 videos without a prompt of the world left out" in err and "it needs two videos" in err


def test_the_number_of_processes_is_handed_on(evdit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With another folder and without one."""
    asked: list[int] = []
    for module in (score, comparison):
        monkeypatch.setattr(
            module, "working", lambda kept, workers, told: asked.append(workers) or working(kept, 1, told)
        )
    prompted(tmp_path, 1, frames=3)
    for words in ([], ["--workers", "5"], ["--workers", "6", "--against", "."]):
        assert evdit("score", ".", *words)[0] == 0
    assert asked == [1, 5, 6]
