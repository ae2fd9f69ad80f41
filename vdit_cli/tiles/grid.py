"""The token grid of a video inside a transformer: latent frames of patch rows x cols, text before or after them."""

from __future__ import annotations

from dataclasses import dataclass

from vdit_cli.reader import MOST, MOST_SIZE

BOUNDS = {"frames": (1, MOST_SIZE), **dict.fromkeys(("rows", "cols"), (1, MOST_SIZE**2))}
BOUNDS |= dict.fromkeys(("text_before", "text_after"), (0, MOST))
"""Of what a machine could hold; all tokens of a frame may stand in one row."""


@dataclass(frozen=True)
class VideoGrid:
    """Tokens of one video in the order of the self-attention: text_before, then frame after frame, then text_after.

    `frames` latent frames of `rows` x `cols` patch tokens each. Raises ValueError for a size that is no grid.
    """

    frames: int
    rows: int
    cols: int
    text_before: int = 0
    text_after: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that are not whole numbers, no frames, no patches, negative lengths, and what no machine has."""
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                rule = f"of at least {least}" if type(value) is not int or value < least else f"of at most {most}"
                raise ValueError(f"{name} is {value!r}: a grid needs a whole number {rule}")

    def __str__(self) -> str:
        """The size in words: "8 frames of 45 x 80 tokens", with the text where there is some."""
        plural = "" if self.frames == 1 else "s"
        text = f" and {self.text_tokens} text tokens" if self.text_tokens else ""
        return f"{self.frames} frame{plural} of {self.rows} x {self.cols} tokens{text}"

    @property
    def frame_tokens(self) -> int:
        """Patch tokens a frame, S."""
        return self.rows * self.cols

    @property
    def video_tokens(self) -> int:
        """Patch tokens of all frames, F*S."""
        return self.frames * self.frame_tokens

    @property
    def text_tokens(self) -> int:
        """Text tokens, those before the video and those after it."""
        return self.text_before + self.text_after

    @property
    def tokens(self) -> int:
        """All tokens, N."""
        return self.text_tokens + self.video_tokens

    def frame_of(self, token: int) -> int | None:
        """The frame that `token` belongs to, or None for a text token. Raises IndexError outside 0..N-1."""
        if not 0 <= token < self.tokens:
            raise IndexError(f"token {token} is outside a grid of {self.tokens} tokens")
        place = token - self.text_before
        return place // self.frame_tokens if 0 <= place < self.video_tokens else None

    def frame_range(self, frame: int) -> range:
        """The tokens of `frame`. Raises IndexError outside 0..F-1."""
        if not 0 <= frame < self.frames:
            raise IndexError(f"frame {frame} is outside a grid of {self.frames} frames")
        start = self.text_before + frame * self.frame_tokens
        return range(start, start + self.frame_tokens)
