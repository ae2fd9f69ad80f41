"""Pairs of videos as pictures: their frames in columns, a column a run, and a sheet of some frames. Pillow, no torch.

A frame is uint8 (H, W, 3). Frames in columns stand as they are, to the pixel; on a sheet large ones are made smaller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vdit_cli.errors import EvditError, printable

PAPER, INK, SOFT = "#ffffff", "#24292f", "#57606a"
GAP, MARGIN = 8, 12
LEAST_COLUMN = 120
"""Pixels: columns of smaller videos have room for their labels."""
LETTERS = 45
"""To a video's width at least: they can be read, too, where a large picture is made to fit a screen."""
LEAST_LETTER = 13
PROMPT_LINES = 3
MOST_SIGNS = 1000
"""Signs of a prompt that are looked at: fewer fit on any three lines."""
SHEET_FRAMES = 6
SHEET_SIDE = 256
"""Pixels: frames whose longer side is longer are made smaller for the sheet."""
MOST_PIXELS = 80_000_000
"""Of a sheet: viewers, Pillow among them, warn of larger pictures."""
CUT = "..."


@dataclass(frozen=True)
class Caption:
    """What stands at a pair: its prompt, and a line of numbers."""

    prompt: str
    told: str


class Lettering:
    """Pillow's own font at a size; it has the signs of ASCII, and all others are written as their numbers."""

    def __init__(self, size: int) -> None:
        self.font = ImageFont.load_default(size)
        self.line = round(1.5 * size)

    def wrapped(self, text: str, width: int, most: int = 1) -> list[str]:
        """At most `most` lines of `width` pixels; what does not fit is cut off, which three dots tell."""
        lines: list[str] = [""]
        words = plain(text).split(" ")
        for number, word in enumerate(words):
            longer = f"{lines[-1]} {word}".strip()
            if self.font.getlength(longer) <= width:
                lines[-1] = longer
            elif lines[-1] and len(lines) < most:
                lines.append(self.cut(word, width))
            else:
                return [*lines[:-1], self.cut(" ".join([lines[-1], *words[number:]]).strip(), width)]
        return lines

    def cut(self, text: str, width: int) -> str:
        """The text, or as much of its beginning as fits with three dots behind it."""
        if self.font.getlength(text) <= width:
            return text
        fitting = [end for end in range(len(text)) if self.font.getlength(text[:end] + CUT) <= width]
        return text[: max(fitting, default=0)].rstrip() + CUT


def plain(text: str) -> str:
    """Text in ASCII on one line: control signs as `printable` writes them, other signs as their numbers too."""
    told = " ".join(printable(text[:MOST_SIGNS]).split()) + (CUT if len(text) > MOST_SIGNS else "")
    return told.encode("ascii", "backslashreplace").decode("ascii")


class Columns:
    """Videos of one size (H, W) in columns: labels above, a caption below, room for the longest of `captions`."""

    def __init__(self, labels: Sequence[str], size: tuple[int, int], captions: Sequence[Caption]) -> None:
        self.labels, self.size = labels, size
        self.text = Lettering(max(LEAST_LETTER, size[1] // LETTERS))
        self.column = max(size[1], LEAST_COLUMN)
        self.width = 2 * MARGIN + len(labels) * (self.column + GAP) - GAP
        self.top = MARGIN + self.text.line
        below = 1 + max(len(self.lines(caption)) for caption in captions)
        self.height = self.top + size[0] + GAP + below * self.text.line + MARGIN

    def lines(self, caption: Caption) -> list[str]:
        """The lines of a caption's prompt."""
        return self.text.wrapped(caption.prompt, self.width - 2 * MARGIN, PROMPT_LINES)

    def left(self, column: int) -> int:
        """Where a column begins."""
        return MARGIN + column * (self.column + GAP)

    def paper(self, caption: Caption) -> np.ndarray:
        """The picture of a pair without its frames."""
        image = Image.new("RGB", (self.width, self.height), PAPER)
        draw = ImageDraw.Draw(image)
        for column, label in enumerate(self.labels):
            told = self.text.wrapped(label, self.column)[0]
            draw.text((self.left(column), MARGIN), told, INK, self.text.font)
        below = self.top + self.size[0] + GAP
        told = self.text.wrapped(caption.told, self.width - 2 * MARGIN)[0]
        for number, line in enumerate([*(lines := self.lines(caption)), told]):
            colour = INK if number < len(lines) else SOFT
            draw.text((MARGIN, below + number * self.text.line), line, colour, self.text.font)
        return np.array(image)

    def pictures(self, caption: Caption, videos: Sequence[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
        """A picture for each frame of videos that are equally long, one a column."""
        paper, (height, width) = self.paper(caption), self.size
        for frames in zip(*videos, strict=True):
            picture = paper.copy()
            for column, frame in enumerate(frames):
                left = self.left(column)
                picture[self.top : self.top + height, left : left + width] = frame
            yield picture


class Sheet:
    """Some frames of each pair's videos on one picture: a block a pair, in it a row a run with its label before it.

    Raises EvditError where so many `pairs` of videos of the size (H, W) are too many for one picture.
    """

    def __init__(self, labels: Sequence[str], size: tuple[int, int], pairs: int) -> None:
        self.labels = labels
        larger = max(1.0, max(size) / SHEET_SIDE)
        self.frame = max(1, round(size[1] / larger)), max(1, round(size[0] / larger))
        self.text = Lettering(LEAST_LETTER)
        self.left = MARGIN + LEAST_COLUMN + GAP
        self.row = max(self.frame[1] + GAP, 2 * self.text.line)
        self.width = self.left + SHEET_FRAMES * (self.frame[0] + GAP) - GAP + MARGIN
        self.title = self.text.line + GAP
        self.block = 2 * self.text.line + len(labels) * self.row + GAP
        room = MOST_PIXELS // self.width - 2 * (MARGIN + self.title)
        if pairs * self.block > room:
            what = (
                f"{pairs} pairs would make a sheet {self.width} x {pairs * self.block} pixels large: viewers refuse it"
            )
            steps = [f"--limit {max(1, room // self.block)}", "no --sheet"]
            raise EvditError(what, where="--sheet", next_steps=steps)

    def begin(self, groups: Mapping[str, Sequence[Caption]]) -> None:
        """The paper with the captions of all pairs, under the title of each group that has any."""
        filled = {title: captions for title, captions in groups.items() if captions}
        height = 2 * MARGIN + len(filled) * self.title + sum(map(len, filled.values())) * self.block
        self.image = Image.new("RGB", (self.width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.places: list[int] = []
        top = MARGIN
        for title, captions in filled.items():
            self.write(top, title, SOFT)
            top += self.title
            for caption in captions:
                self.write(top, caption.prompt, INK)
                self.write(top + self.text.line, caption.told, SOFT)
                self.places.append(top + 2 * self.text.line)
                top += self.block

    def write(self, top: int, text: str, colour: str) -> None:
        """A line between the margins."""
        told = self.text.wrapped(text, self.width - 2 * MARGIN)[0]
        self.draw.text((MARGIN, top), told, colour, self.text.font)

    def place(self, block: int, run: int, count: int, frames: Iterator[np.ndarray]) -> None:
        """Draw the video of a run, of `count` frames, in a pair's block."""
        top = self.places[block] + run * self.row
        for number, line in enumerate(self.text.wrapped(self.labels[run], LEAST_COLUMN, 2)):
            self.draw.text((MARGIN, top + number * self.text.line), line, INK, self.text.font)
        chosen = set(evenly_spaced(count))
        shown = (frame for at, frame in enumerate(frames) if at in chosen)
        for number, frame in enumerate(shown):
            picture = Image.fromarray(frame)
            if picture.size != self.frame:
                picture = picture.resize(self.frame, Image.Resampling.LANCZOS)
            self.image.paste(picture, (self.left + number * (self.frame[0] + GAP), top))


def evenly_spaced(count: int) -> list[int]:
    """SHEET_FRAMES of `count` frames, or all of fewer, the first and the last among them."""
    shown = min(count, SHEET_FRAMES)
    return [round(at * (count - 1) / max(shown - 1, 1)) for at in range(shown)]
