"""The pictures of pairs: labels and captions are there and stay in their places; sheets have a largest size."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageColor

from vdit_cli.errors import EvditError
from vdit_cli.evaluation.side_by_side import (
    CUT,
    GAP,
    INK,
    LEAST_COLUMN,
    MARGIN,
    MOST_PIXELS,
    PAPER,
    PROMPT_LINES,
    SHEET_SIDE,
    SOFT,
    Caption,
    Columns,
    Lettering,
    Sheet,
    evenly_spaced,
    plain,
)

TEXT = Lettering(13)
LONG = "a small blue ring bouncing over a beige background " * 9


def is_drawn(picture: np.ndarray) -> bool:
    """Whether anything but paper is there."""
    return bool((picture != ImageColor.getrgb(PAPER)).any())


def contrast(colour: str, other: str) -> float:
    """(lighter + .05) / (darker + .05) of relative luminances. Source: WCAG 2.1, contrast ratio."""
    lights = []
    for each in (colour, other):
        parts = [value / 255 for value in ImageColor.getrgb(each)[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_letters_are_legible():
    """At least 4.5 to 1, as WCAG 2.1 AA wants it of text."""
    assert min(contrast(INK, PAPER), contrast(SOFT, PAPER)) >= 4.5


@given(st.text(max_size=300), st.integers(40, 500), st.integers(1, 4))
def test_lines_fit_their_width(text: str, width: int, most: int):
    """And are no more than asked for; where nothing is cut, all words are there."""
    lines = TEXT.wrapped(text, width, most)
    assert 1 <= len(lines) <= most and all(TEXT.font.getlength(line) <= width for line in lines)
    if not any(line.endswith(CUT) for line in lines):
        assert " ".join(lines).split() == plain(text).split()


def test_a_text_that_does_not_fit_is_cut_at_its_end():
    """Its beginning stays, three dots follow; a text that fits is left as it is."""
    lines = TEXT.wrapped(LONG, 200, PROMPT_LINES)
    assert len(lines) == PROMPT_LINES and lines[-1].endswith(CUT)
    assert LONG.startswith(" ".join(lines).removesuffix(CUT))
    assert TEXT.wrapped("one two", 200, 3) == ["one two"]
    assert TEXT.wrapped("word " * 2000, 200, 1)[0].endswith(CUT), "a prompt of any length"


def test_signs_that_the_font_lacks_are_written_as_their_numbers():
    """Control signs, line ends and other alphabets; the font draws a box for all of them alike."""
    assert plain("red\x1b[31m ring\n\tmoving  up") == r"red\u001b[31m ring moving up"
    assert plain("grüne Äpfel 漢") == r"gr\xfcne \xc4pfel \u6f22"
    assert plain("\u202eright") == r"\u202eright"
    assert plain("x" * 5000) == "x" * 1000 + CUT
    assert re.fullmatch(r"[ -~]*", plain("".join(map(chr, range(0x3000)))))


@pytest.mark.parametrize("size", [(8, 12), (128, 128), (720, 1280)])
def test_labels_stand_above_their_columns_and_the_caption_below(size: tuple[int, int]):
    """Each where it belongs, and none of it elsewhere: not in the next column, not where the frames go."""
    captions = [Caption(LONG, "seed 1"), Caption("short", "seed 2")]
    columns = Columns(["dense", LONG, "1:7"], size, captions)
    paper = columns.paper(captions[0])
    assert paper.shape == (columns.height, columns.width, 3)
    wide = max(size[1], LEAST_COLUMN)
    for column in range(3):
        left = MARGIN + column * (wide + GAP)
        assert columns.left(column) == left
        assert is_drawn(paper[: columns.top, left : left + wide])
        assert not is_drawn(paper[: columns.top, left + wide : left + wide + GAP])
    assert not is_drawn(paper[columns.top : columns.top + size[0]])
    below = columns.top + size[0]
    assert is_drawn(paper[below:]) and not is_drawn(paper[-MARGIN // 2 :]) and not is_drawn(paper[:, -MARGIN:])
    others = [Columns(["dense", "x", "1:7"], size, captions).paper(captions[0]), columns.paper(captions[1])]
    assert (others[0][below:] == paper[below:]).all() and (others[0][:below] != paper[:below]).any()
    assert (others[1][:below] == paper[:below]).all() and (others[1][below:] != paper[below:]).any()
    told = columns.paper(Caption(LONG, "seed 3"))
    assert (told[below:] != paper[below:]).any()


def test_letters_grow_with_the_videos():
    """A large picture is made to fit a screen, letters and all."""
    sizes = [Columns(["a"], size, [Caption("", "")]).text.font.size for size in ((8, 12), (128, 128), (720, 1280))]
    assert sizes == [13, 13, 28]


@given(st.integers(1, 300))
def test_frames_of_the_sheet_are_evenly_spaced(count: int):
    """From the first to the last, none twice, gaps that differ by one at most."""
    found = evenly_spaced(count)
    assert found == sorted(set(found)) and len(found) == min(count, 6)
    assert (found[0], found[-1]) == (0, count - 1)
    assert len(set(np.diff(found))) <= 1 or np.ptp(np.diff(found)) == 1


def test_large_frames_are_made_smaller_for_the_sheet():
    """To SHEET_SIDE on the longer side, in proportion."""
    sheet = Sheet(["a"], (512, 1024), 1)
    sheet.begin({"title": [Caption("prompt", "seed 1")]})
    frame = np.full((512, 1024, 3), (200, 10, 10), np.uint8)
    sheet.place(0, 0, 1, iter([frame]))
    rows, columns = np.nonzero((np.asarray(sheet.image) == (200, 10, 10)).all(axis=-1))
    assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (SHEET_SIDE // 2, SHEET_SIDE)


def test_titles_labels_and_captions_are_on_the_sheet():
    """Of groups that have pairs; rows of a block begin with their label."""

    def sheet(title: str, label: str, caption: Caption) -> np.ndarray:
        drawn = Sheet([label, "b"], (40, 50), 1)
        drawn.begin({"none of these": [], title: [caption]})
        drawn.place(0, 0, 1, iter([np.full((40, 50, 3), 255, np.uint8)]))
        return np.asarray(drawn.image)

    first = sheet("one", "a", Caption("prompt", "seed 1"))
    for other in (
        sheet("two", "a", Caption("prompt", "seed 1")),
        sheet("one", "c", Caption("prompt", "seed 1")),
        sheet("one", "a", Caption("other", "seed 1")),
        sheet("one", "a", Caption("prompt", "seed 2")),
    ):
        assert other.shape == first.shape and (other != first).any()


def test_a_sheet_that_no_viewer_takes_is_refused():
    """With the limit up to which it is one."""
    labels, size = ["a", "b"], (256, 256)
    with pytest.raises(EvditError, match="100000 pairs would make a sheet") as caught:
        Sheet(labels, size, 100_000)
    most = int(caught.value.next_steps[0].removeprefix("--limit "))
    sheet = Sheet(labels, size, most)
    sheet.begin({"one": [Caption("", "")] * (most - 1), "two": [Caption("", "")]})
    assert sheet.image.width * sheet.image.height <= MOST_PIXELS
    with pytest.raises(EvditError):
        Sheet(labels, size, most + 1)
