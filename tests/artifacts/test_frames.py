"""Videos that are written as their frames come: the same files, and few frames in memory."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from tests.artifacts.test_video_file import METADATA, NAMES, moving_square
from vdit_cli.artifacts.digest import path_digest
from vdit_cli.artifacts.frames import Frames
from vdit_cli.artifacts.video_file import encode


@pytest.mark.parametrize("name", NAMES)
def test_frames_that_come_one_at_a_time_make_the_same_file(tmp_path: Path, name: str):
    """As an array of all of them; no frames, or of another shape, are none."""
    video, kind = moving_square(9, 33, 41), Path(name).suffix
    encode(tmp_path / "array", kind, video, 8, METADATA)
    encode(tmp_path / "frames", kind, Frames((9, 33, 41, 3), lambda: iter(video)), 8, METADATA)
    assert path_digest(tmp_path / "frames") == path_digest(tmp_path / "array")
    for shape in ((0, 33, 41, 3), (9, 33, 41, 4)):
        with pytest.raises(ValueError, match="a video is uint8"):
            encode(tmp_path / "none", kind, Frames(shape, lambda: iter(video)), 8)


@pytest.mark.parametrize("name", ["clip.mp4", "clip"])
def test_few_frames_are_alive_while_they_are_written(tmp_path: Path, name: str):
    """Of 60 not more than three at once, as each comes."""
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def coming():
        nonlocal most
        for frame in moving_square(60):
            held = frame.copy()
            alive.append(weakref.ref(held))
            most = max(most, sum(seen() is not None for seen in alive))
            yield held

    encode(tmp_path / name, Path(name).suffix, Frames((60, 48, 64, 3), coming), 8)
    assert len(alive) == 60 and most <= 3
