"""What a killed process left in a run: removed where it was noted, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vdit_cli.artifacts import unfinished
from vdit_cli.artifacts.atomic import replacing, write_text
from vdit_cli.artifacts.lock import FolderLock
from vdit_cli.errors import USAGE, EvditError

ALIKE = (
    ".bundle.1a2b3c4d.js",
    "js/.bundle.1a2b3c4d.js",
    ".cache.deadbeef/x",
    ".evdit-deadbeef.mp4",
    "js/.evdit-deadbeef",
)
"""Names of others' that look like temporary ones."""


def files(folder: Path) -> dict[str, str]:
    """The files of a folder and below it, by their relative names."""
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in found}


@pytest.fixture
def run(tmp_path: Path):
    """A folder that this process holds the lock of."""
    (tmp_path / "run").mkdir()
    lock = FolderLock(tmp_path / "run")
    lock.take()
    yield tmp_path / "run"
    lock.release()


def test_only_what_was_noted_is_removed(run: Path):
    """A process killed while it writes a file below and a folder; what looks alike stays."""
    for name in ALIKE:
        write_text(run / name, "mine")
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from vdit_cli.artifacts.atomic import replacing\n"
        "from vdit_cli.artifacts.lock import FolderLock\n"
        "FolderLock(Path('.')).take()\n"
        "with replacing('deep/video.mp4') as video, replacing('frames') as frames:\n"
        "    video.write_text('half'); frames.mkdir(); (frames / '0.png').write_text('half')\n"
        "    print(video.name, frames.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    FolderLock(run).path.unlink()
    died = subprocess.run([sys.executable, "-c", program], cwd=run, capture_output=True, text=True, check=False)
    video, frames = died.stdout.split()
    assert died.returncode == -9 and {f"deep/{video}", f"{frames}/0.png"} < set(files(run))
    unfinished.clear(run)
    assert set(files(run)) == {*ALIKE, ".lock"}


def test_what_is_written_by_another_process_is_not_noted(run: Path):
    """Nor is what lies outside, or in a run that nobody holds."""
    (run / ".lock").write_bytes(b" 1")
    with replacing(run / "a.txt") as beside:
        beside.write_text("x", encoding="utf-8")
        assert not (run / unfinished.FILE).exists()
        unfinished.clear(run)
        assert beside.exists()
    assert "a.txt" in os.listdir(run)


def test_a_folder_that_stepped_aside_is_put_back(run: Path):
    """Killed between the two renames, only the old folder is there; killed after them, both are."""
    old, new, place = run / ".evdit-0123abcd.old", run / ".evdit-0123abcd", run / "frames"
    for _ in range(2):
        write_text(old / "0.png", "old")
        write_text(new / "0.png", "half")
        unfinished.note(new, place)
        unfinished.note(old, place)
        unfinished.clear(run)
        assert files(run) == {".lock": files(run)[".lock"], "frames/0.png": "old"}


def test_notes_that_lead_elsewhere_are_not_followed(run: Path):
    """Out of the folder, to a name that is not ours, or cut short."""
    write_text(run.parent / ".evdit-0123abcd", "mine")
    write_text(run / "thesis.tex", "mine")
    lines = [["../.evdit-0123abcd", "a"], [str(run.parent / ".evdit-0123abcd"), "a"], ["thesis.tex", "a"]]
    write_text(run / unfinished.FILE, "\n".join([*map(json.dumps, lines), '[".evdit-0123']))
    unfinished.clear(run)
    assert set(files(run)) == {"thesis.tex", ".lock"}
    assert (run.parent / ".evdit-0123abcd").exists()


@pytest.mark.parametrize("content", [b"my notes\n", b'["a"]\n', b"3\n", b"\xff\xfe\n", b'["a", "b"]\n\n', None])
def test_what_somebody_keeps_under_that_name_stays(run: Path, content: bytes | None):
    """Text, other JSON, no text at all, or a folder: refused with what to do, and nothing of it is lost."""
    place = run / unfinished.FILE
    place.mkdir() if content is None else place.write_bytes(content)
    with pytest.raises(EvditError) as caught:
        unfinished.clear(run)
    assert caught.value.exit_code == USAGE and str(place) in f"{caught.value.where}"
    assert caught.value.next_steps[-1] == f"mv -n {place} {run / 'unfinished.aside'}  (it is somebody's)"
    assert place.is_dir() if content is None else place.read_bytes() == content
