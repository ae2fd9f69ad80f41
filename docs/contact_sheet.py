"""Draw docs/students.png: the same prompts and seeds by the base, by students, and by the base in as few steps.

{ grep -m1 "small .* ring" recipes/prompts/shapes-held-out.txt; grep -m1 circling recipes/prompts/shapes-held-out.txt
  head -1 recipes/prompts/shapes-held-out-two-objects.txt; } > runs/sheet.txt
evdit generate --prompts-file runs/sheet.txt -o runs/sheet/base-50
for n in 8 4 2; do
  evdit generate --prompts-file runs/sheet.txt --checkpoint runs/trained/student-$n -o runs/sheet/student-$n
  evdit generate --prompts-file runs/sheet.txt --steps $n --scheduler ddim -o runs/sheet/ddim-$n
done
python docs/contact_sheet.py "base, 50 steps=runs/sheet/base-50" \
  "student, 8 steps=runs/sheet/student-8" "student, 4 steps=runs/sheet/student-4" \
  "student, 2 steps=runs/sheet/student-2" \
  "DDIM, 8 steps=runs/sheet/ddim-8" "DDIM, 4 steps=runs/sheet/ddim-4" "DDIM, 2 steps=runs/sheet/ddim-2"

A row a prompt, a column a folder: the middle frame, below it four frames from the first to the last.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from script import folder_at, run

from vdit_cli.artifacts.video_file import read_video
from vdit_cli.errors import EvditError
from vdit_cli.evaluation.videos import videos_at
from vdit_cli.timing import Silent

EXAMPLE = 'python docs/contact_sheet.py "base, 50 steps=runs/sheet/base-50"'
PICTURE = Path(__file__).parent / "students.png"
SIDE, BETWEEN, GAP, LINE, MARGIN = 128, 2, 8, 24, 16
PAPER, INK, SOFT = "#ffffff", "#24292f", "#57606a"


def cell(video: np.ndarray) -> Image.Image:
    """A video (T, H, W, 3) as a picture: its middle frame, below it four from the first to the last, half as wide."""
    image = Image.new("RGB", (SIDE, 2 * SIDE + BETWEEN), PAPER)
    image.paste(resized(video[len(video) // 2], SIDE), (0, 0))
    half = (SIDE - BETWEEN) // 2
    for number, frame in enumerate(np.linspace(0, len(video) - 1, 4).round().astype(int)):
        down, right = divmod(number, 2)
        place = right * (half + BETWEEN), SIDE + BETWEEN + down * (half + BETWEEN)
        image.paste(resized(video[frame], half), place)
    return image


def resized(frame: np.ndarray, side: int) -> Image.Image:
    """A frame as a square picture; one of that size as it is."""
    return Image.fromarray(frame).resize((side, side), Image.Resampling.LANCZOS)


def picture(folders: Mapping[str, Path]) -> Image.Image:
    """The sheet of folders of videos by label. Raises EvditError where their prompts or seeds differ."""
    columns = {label: videos_at([folder], Silent()) for label, folder in folders.items()}
    first, *others = [[(video.prompt, video.seed) for video in each] for each in columns.values()]
    for label, other in zip(list(folders)[1:], others, strict=True):
        if other != first:
            raise EvditError(
                f"the videos of {label!r} have other prompts or seeds than those of {next(iter(folders))!r}",
                where=str(folders[label]),
            )
    row = LINE + 2 * SIDE + BETWEEN + 2 * GAP
    size = 2 * MARGIN + len(columns) * (SIDE + GAP) - GAP, 2 * MARGIN + LINE + len(first) * row - 2 * GAP
    image = Image.new("RGB", size, PAPER)
    draw, text, small = ImageDraw.Draw(image), ImageFont.load_default(15), ImageFont.load_default(14)
    for number, (prompt, _) in enumerate(first):
        draw.text((MARGIN, MARGIN + LINE + number * row), prompt or "", SOFT, text)
    for place, (label, videos) in enumerate(columns.items()):
        left = MARGIN + place * (SIDE + GAP)
        draw.text((left, MARGIN), label, INK, small)
        for number, video in enumerate(videos):
            shown = cell(read_video(video.path)[0])
            image.paste(shown, (left, MARGIN + 2 * LINE + number * row))
    return image


def columns_of(arguments: Sequence[str]) -> dict[str, Path]:
    """Folders by label from words LABEL=FOLDER, in order. Raises EvditError for other words, a label twice, none."""
    columns: dict[str, Path] = {}
    for word in arguments:
        label, sign, folder = word.partition("=")
        if not (label and sign):
            raise EvditError(f"{word!r} is no LABEL=FOLDER", where=word, next_steps=[EXAMPLE])
        if label in columns:
            raise EvditError(f"{label!r} is the label of two columns", where=word, next_steps=["a label a column"])
        columns[label] = folder_at(folder)
    if not columns:
        raise EvditError("no column was given: each is a word LABEL=FOLDER", next_steps=[EXAMPLE])
    return columns


def main(arguments: Sequence[str]) -> None:
    """Draw the folders given as LABEL=FOLDER, left to right, in 256 colours: a third of the bytes."""
    sheet = picture(columns_of(arguments))
    sheet.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


if __name__ == "__main__":
    sys.exit(run(main))
