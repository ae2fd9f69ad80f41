"""What is read of a clip: motion and flicker frame by frame as of the whole, kept as JSON to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.closeness import assert_close
from tests.evaluation.clips import pixels, pixels_of
from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.video_file import write_video
from vdit_cli.data.shapes_world import draw_scenes
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.evaluation.readings import Seen, compare_frames, see, see_frames
from vdit_cli.evaluation.shape_reading import read_attributes
from vdit_cli.measures import flicker, motion, psnr, ssim


@pytest.mark.numerical
def test_frame_by_frame_is_as_the_whole():
    """Motion, flicker and the reading of a video do not depend on its coming one frame at a time."""
    video = pixels_of(51, 1)[1][0]
    seen = see(video.shape[1:3], iter(video))
    assert_close([seen.motion, seen.flicker], [motion(video), flicker(video)])
    assert seen.reading == read_attributes(video) and seen.frames == 29
    still = see_frames(video[:1])
    assert (still.motion, still.flicker, still.frames) == (0, 0, 1)


def test_what_is_kept_comes_back():
    """Through JSON, equal to the last bit: readable clips with one and two objects, and an unreadable one."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), dtype=np.uint8)
    for video in (*pixels_of(52, 3, two_objects=0.7)[1], noise):
        seen = see_frames(video)
        assert Seen.of(json.loads(json.dumps(seen.content()))) == seen


def test_frames_are_compared_as_they_were_made(tmp_path: Path):
    """PSNR and SSIM of two folders of PNGs; equal ones have no PSNR; other lengths and small ones are refused."""
    video = pixels(draw_scenes(53, 1)[0], frames=3)
    other = np.maximum(video, 40)
    for name, frames in (
        ("a", video),
        ("b", other),
        ("c", video[:2]),
        ("d", video[:, :8, :8]),
        ("e", video[:, :8, :8]),
    ):
        write_video(tmp_path / name, frames, 8)
    sides = {name: (tmp_path / name, path_digest(tmp_path / name)) for name in "abcde"}
    assert compare_frames(sides["a"], sides["b"]) == {"psnr": psnr(video, other), "ssim": ssim(video, other)}
    assert compare_frames(sides["a"], sides["a"]) == {"psnr": None, "ssim": 1.0}
    told = {"ac": "3 frames of 128 x 128 and 2 frames of 128 x 128", "de": "3 frames of 8 x 8 and 3 frames of 8 x 8"}
    for (a, b), why in told.items():
        with pytest.raises(EvditError, match=why) as error:
            compare_frames(sides[a], sides[b])
        assert error.value.exit_code == USAGE and error.value.where == str(tmp_path / b)
        assert f"move {tmp_path / b} out of its folder" in error.value.next_steps[0]
    with pytest.raises(EvditError, match="b changed while it was read"):
        compare_frames(sides["a"], (tmp_path / "b", sides["a"][1]))
