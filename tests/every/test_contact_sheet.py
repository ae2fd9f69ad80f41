"""docs/contact_sheet.py on clips drawn here: what stands where, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.every.test_documented_commands import faults, flags_by_command
from vdit_cli.artifacts.video_file import write_video
from vdit_cli.errors import USAGE, EvditError

ROOT = Path(__file__).resolve().parents[2]
RED, BLUE, BLACK = (230, 20, 20), (20, 60, 250), (0, 0, 0)


@pytest.fixture
def sheet(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import contact_sheet

    return contact_sheet


def moving(colour: tuple[int, int, int], frames: int = 29) -> np.ndarray:
    """A square of 8 pixels on black that moves 3 pixels a frame to the right, and another that stands still."""
    video = np.zeros((frames, 128, 128, 3), np.uint8)
    for t in range(frames):
        video[t, 40:48, 3 * t + 10 : 3 * t + 18] = colour
        video[t, 100:108, 60:68] = colour
    return video


def write_videos(folder: Path, *colours: tuple[int, int, int], seed: int = 0) -> Path:
    """A folder of PNGs a video, as they were made."""
    for number, colour in enumerate(colours):
        about = {"prompt": f"prompt {number}", "seed": str(seed + number)}
        write_video(folder / f"{number}", moving(colour), 8, about)
    return folder


def test_a_row_a_prompt_and_a_column_a_folder(sheet: ModuleType, tmp_path: Path):
    """The middle frame above, as it is; labels above the columns, prompts above the rows."""
    folders = {"one": write_videos(tmp_path / "a", RED, BLUE), "two": write_videos(tmp_path / "b", BLUE, RED)}
    image = np.asarray(sheet.picture(folders))
    step, first = sheet.SIDE + sheet.GAP, sheet.MARGIN + 2 * sheet.LINE
    row = sheet.LINE + 2 * sheet.SIDE + sheet.BETWEEN + 2 * sheet.GAP
    colours = {(0, 0): RED, (0, 1): BLUE, (1, 0): BLUE, (1, 1): RED}
    for (place, number), colour in colours.items():
        left, top = sheet.MARGIN + place * step, first + number * row
        shown = image[top : top + 2 * sheet.SIDE + sheet.BETWEEN, left : left + sheet.SIDE]
        assert np.array_equal(shown, np.asarray(sheet.cell(moving(colour))))
        assert np.array_equal(shown[: sheet.SIDE], moving(colour)[14])
    paper = (image == 255).all(axis=-1)
    lines = [slice(sheet.MARGIN, first - sheet.LINE), slice(first - sheet.LINE, first)]
    lines.append(slice(first + row - sheet.LINE, first + row))
    assert [bool(paper[line].all()) for line in lines] == [False] * 3
    assert not paper[lines[0], sheet.MARGIN + step :].all(), "the second label"
    assert paper[-sheet.MARGIN :].all() and paper[:, -sheet.MARGIN :].all()


def test_four_frames_tell_the_motion(sheet: ModuleType):
    """The first, the last and two between, row by row: where the square stands in each, halved."""
    below = np.asarray(sheet.cell(moving(RED)))[sheet.SIDE + sheet.BETWEEN :]
    half = (sheet.SIDE - sheet.BETWEEN) // 2
    for number, t in enumerate((0, 9, 19, 28)):
        down, right = (place * (half + sheet.BETWEEN) for place in divmod(number, 2))
        small = below[down : down + half, right : right + half]
        is_red = small[: half // 2, :, 0] > 115
        centre = np.nonzero(is_red)[1].mean() + 0.5
        wanted = (3 * t + 14) * half / sheet.SIDE
        assert abs(centre - wanted) < 1, "a frame later it were 1.5 pixels further"


@pytest.mark.parametrize("what", ["seed", "fewer"])
def test_other_videos_are_refused(sheet: ModuleType, tmp_path: Path, what: str):
    """Columns are only compared where prompts and seeds are the same."""
    one = write_videos(tmp_path / "a", RED, BLUE)
    two = write_videos(tmp_path / "b", RED, seed=1) if what == "seed" else write_videos(tmp_path / "b", RED)
    with pytest.raises(EvditError, match="videos of 'two' have other prompts or seeds"):
        sheet.picture({"one": one, "two": two})


def test_the_file_of_seven_columns_is_narrow_and_small(
    sheet: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the order of the command line; a few colours less, none of them far off."""
    monkeypatch.setattr(sheet, "PICTURE", tmp_path / "students.png")
    folders = [write_videos(tmp_path / str(n), BLUE if n == 6 else RED, RED, BLUE) for n in range(7)]
    sheet.main([f"label {n}={folder}" for n, folder in enumerate(folders)])
    image = Image.open(tmp_path / "students.png")
    assert image.mode == "P" and image.width <= 1000
    assert (tmp_path / "students.png").stat().st_size < 300_000
    wanted = sheet.picture({f"label {n}": folder for n, folder in enumerate(folders)})
    off = np.abs(np.asarray(image.convert("RGB")).astype(int) - np.asarray(wanted))
    assert off.max() < 64


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no column was given"),
        (["runs"], "'runs' is no LABEL=FOLDER"),
        (["=."], "'=.' is no LABEL=FOLDER"),
        (["one=nowhere"], "nowhere is no folder"),
        (["one="], "an empty name is no folder"),
        (["one=.", "two=.", "one=.."], "'one' is the label of two columns"),
    ],
)
def test_odd_words_are_told(sheet: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path, words, told):
    """As `evdit` tells a fault, and no column is dropped; the picture stays."""
    monkeypatch.setattr(sheet, "PICTURE", tmp_path / "students.png")
    monkeypatch.setattr("sys.argv", ["contact_sheet.py", *words])
    assert sheet.run(sheet.main) == USAGE
    assert capsys.readouterr().err.startswith(f"error: {told}") and not sheet.PICTURE.exists()


def test_the_commands_of_the_head_exist(sheet: ModuleType):
    known = flags_by_command()
    lines = re.findall(r"^\s*evdit (.*)$", sheet.__doc__, re.MULTILINE)
    assert len(lines) == 3 and [wrong for line in lines if (wrong := faults(line, known))] == []
