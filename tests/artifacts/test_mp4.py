"""Mp4 on a machine that has no thread or memory left, which is no fault of the video."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from vdit_cli.artifacts import mp4
from vdit_cli.artifacts.video_file import read_video, write_video
from vdit_cli.errors import FAILED, EvditError


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM])
def test_a_machine_without_threads_or_memory_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    """Reading and writing: the video is not called damaged, and what stood there stays."""
    frames, video = np.zeros((3, 48, 64, 3), np.uint8), tmp_path / "a.mp4"
    write_video(video, frames, 8)
    content = video.read_bytes()

    def begin(height: int, width: int) -> int:
        raise mp4.pyav().error.FFmpegError(number, "Resource temporarily unavailable")

    monkeypatch.setattr(mp4, "threads_of", begin)
    for work in (lambda: read_video(video), lambda: write_video(video, frames, 8, overwrite=True)):
        with pytest.raises(EvditError, match="^the machine had no thread or memory left to .*unavailable") as told:
            work()
        assert told.value.exit_code == FAILED and told.value.next_steps
    assert video.read_bytes() == content
