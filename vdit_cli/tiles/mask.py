"""The tile mask of one layer: which of the F x F frame pairs attend, and how much of the work that leaves.

A mask `k:F-k` keeps the diagonal tiles and all rows and columns of its k global frames. Text counts as one more
global frame. Letters: F latent frames, S tokens a frame, N tokens, k global frames.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.tiles.grid import VideoGrid

if TYPE_CHECKING:
    import numpy as np

MOST_DRAWN = 512
"""Frames of a mask that are drawn, the first ones [ours; no published model has as many]."""


@dataclass(frozen=True)
class TileMask:
    """The global frames of a layer over F latent frames; all the rest follows from them.

    `global_frames` is kept as a sorted tuple. Raises ValueError for no frames, no global frame, one that is out of
    range or named twice.
    """

    frames: int
    global_frames: tuple[int, ...]

    def __post_init__(self) -> None:
        """Sort the global frames and refuse what is no mask."""
        if type(self.frames) is not int or self.frames < 1:
            raise ValueError(f"{self.frames!r} frames: a mask needs a whole number of at least 1")
        if not self.global_frames:
            raise ValueError("no global frame: a mask needs at least one")
        for frame in self.global_frames:
            if type(frame) is not int or not 0 <= frame < self.frames:
                raise ValueError(
                    f"global frame {frame!r} is out of range: {self.frames} frames are 0 to {self.frames - 1}"
                )
        if len(set(self.global_frames)) < len(self.global_frames):
            raise ValueError(f"global frames {list(self.global_frames)} hold duplicates: name each frame once")
        object.__setattr__(self, "global_frames", tuple(sorted(self.global_frames)))

    @classmethod
    def dense(cls, frames: int) -> TileMask:
        """The full mask `F:0`: every frame is global."""
        return cls(frames, tuple(range(frames)))

    @classmethod
    def from_stride(cls, frames: int, stride: int) -> TileMask:
        """Every `stride`-th frame from the first one on is global, k = ceil(F / stride) of them."""
        if stride < 1:
            raise ValueError(f"stride {stride}: it must be at least 1")
        return cls(frames, tuple(range(0, frames, stride)))

    @classmethod
    def parse(cls, name: str, frames: int, where: str | None = None) -> TileMask:
        """The mask called `name` over F `frames`: "2:6", or "family/2:6" for one that is not the first of FAMILIES.

        Raises EvditError (origin `where`) for a name of another form or length, and for a k that the family can't
        give, with the nearest names that it can.
        """
        found = re.fullmatch(r"(?:([a-z-]+)/)?(\d{1,9}):(\d{1,9})", name.strip(), re.ASCII)
        if found is None:
            raise EvditError(
                f"{name!r} is no mask: a mask is k:m, k global frames and m others",
                where=where,
                next_steps=nearest_names(frames, 1),
            )
        family, k, others = found[1] or next(iter(FAMILIES)), int(found[2]), int(found[3])
        if family not in FAMILIES:
            raise unknown_name("mask family", family, FAMILIES, where)
        if k + others != frames:
            raise EvditError(
                f"mask {name} is for {k + others} frames: this video has {frames} latent frames",
                where=where,
                next_steps=nearest_names(frames, k, family),
            )
        mask = FAMILIES[family](frames, k)
        if mask is None:
            raise EvditError(
                f"mask {name} does not exist: the {family} family has no mask of {k} global frames out of {frames}",
                where=where,
                next_steps=nearest_names(frames, k, family),
            )
        return mask

    @property
    def name(self) -> str:
        """`k:F-k`, the number of global frames and of the others."""
        return f"{len(self.global_frames)}:{self.frames - len(self.global_frames)}"

    @property
    def words(self) -> str:
        """The name, beside which a mask that keeps every tile is called what it is."""
        return f"{self.name} (full attention)" if self.is_dense else self.name

    def content(self) -> dict[str, Any]:
        """The mask and its shares of tiles as JSON values."""
        return {
            "mask": self.name,
            "global_frames": list(self.global_frames),
            "kept_share": self.kept_share,
            "skipped_share": self.skipped_share,
        }

    @property
    def is_dense(self) -> bool:
        """Whether every tile is kept; so it is, too, when a single frame is not global."""
        return len(self.global_frames) >= self.frames - 1

    @property
    def kept_tiles(self) -> int:
        """Tiles kept out of F*F, counted: k rows, k columns and the rest of the diagonal, (2k + 1) F - k (k + 1)."""
        k = len(self.global_frames)
        return (2 * k + 1) * self.frames - k * (k + 1)

    @property
    def kept_share(self) -> float:
        """Share of the F x F tiles that is kept."""
        return self.kept_tiles / self.frames**2

    @property
    def skipped_share(self) -> float:
        """Share of the F x F tiles that is skipped."""
        return 1 - self.kept_share

    def keeps(self, i: int, j: int) -> bool:
        """Whether queries of frame `i` attend to keys of frame `j`."""
        return i == j or i in self.global_frames or j in self.global_frames

    def kept_pair_share(self, grid: VideoGrid) -> float:
        """Share of the N x N token pairs of `grid` that is kept, text rows and columns included."""
        self.check_grid(grid)
        everyone = len(self.global_frames) * grid.frame_tokens + grid.text_tokens
        local = grid.tokens - everyone
        return (everyone * grid.tokens + local * (everyone + grid.frame_tokens)) / grid.tokens**2

    def kept_block_share(self, grid: VideoGrid, block: int = 128) -> float:
        """Share of `block` x `block` token blocks of `grid` that hold a kept pair: what a block-sparse kernel computes.

        Source: this rule at 3600 tokens a frame gives the sparsity column of Table 1 of arXiv 2502.06155.
        """
        self.check_grid(grid)
        # A row (or column) of blocks is told by the frames it touches; None: it touches a global frame or text.
        spans = Counter(self._local_frames(grid, start, block) for start in range(0, grid.tokens, block))
        total = spans.total()
        kept = 0
        for span, count in spans.items():
            if span is None:
                kept += count * total
            else:
                first, last = span
                kept += count * sum(n for other, n in spans.items() if other is None or _meet(first, last, other))
        return kept / total**2

    def _local_frames(self, grid: VideoGrid, start: int, block: int) -> tuple[int, int] | None:
        """First and last frame in the block of tokens from `start` on, or None where one of them is global or text."""
        first = grid.frame_of(start)
        last = grid.frame_of(min(start + block, grid.tokens) - 1)
        if first is None or last is None or any(frame in self.global_frames for frame in range(first, last + 1)):
            return None
        return first, last

    def frame_matrix(self, most: int | None = None) -> np.ndarray:
        """Boolean (F, F): which tiles are kept; of the first `most` frames where there are more."""
        import numpy as np

        is_global = np.zeros(self.frames, dtype=bool)
        is_global[list(self.global_frames)] = True
        first = is_global[:most]
        return np.eye(len(first), dtype=bool) | first[:, None] | first[None, :]

    def token_mask(self, grid: VideoGrid) -> np.ndarray:
        """Boolean (N, N): which token pairs are kept. N x N in memory, so for tests and pictures only."""
        import numpy as np

        self.check_grid(grid)
        frames = np.array([-1 if (frame := grid.frame_of(token)) is None else frame for token in range(grid.tokens)])
        is_everyone = (frames < 0) | np.isin(frames, self.global_frames)
        return (frames[:, None] == frames[None, :]) | is_everyone[:, None] | is_everyone[None, :]

    def check_grid(self, grid: VideoGrid) -> None:
        """Raises ValueError where `grid` has another number of frames than this mask."""
        if grid.frames != self.frames:
            raise ValueError(f"a mask of {self.frames} frames does not fit a grid of {grid.frames} frames")


def mean_kept_share(masks_L: Sequence[TileMask]) -> float:
    """Share of tiles kept, mean over layers of these masks."""
    return sum(mask.kept_share for mask in masks_L) / len(masks_L)


def _meet(first: int, last: int, other: tuple[int, int]) -> bool:
    """Whether the frames first..last and those of `other` share one."""
    return first <= other[1] and other[0] <= last


def strided(frames: int, k: int) -> TileMask | None:
    """The mask of the smallest stride s with ceil(F / s) = k global frames, or None where no stride gives k.

    Source: Table 1 of arXiv 2502.06155. The smallest stride is our choice [ours]: at F = 8, 4 to 7 all give 2:6.
    """
    if not 1 <= k <= frames:
        return None
    stride = -(-frames // k)  # the smallest with ceil(frames / stride) <= k
    mask = TileMask.from_stride(frames, stride)
    return mask if len(mask.global_frames) == k else None


FAMILIES: dict[str, Callable[[int, int], TileMask | None]] = {"strided": strided}
"""Mask families: (frames, k) to the family's mask, or None where it has none. A bare name means the first family."""


def family_masks(frames: int, family: str = "strided") -> list[TileMask]:
    """All masks of `family` over F `frames`, sparsest first, the full mask last."""
    masks = (FAMILIES[family](frames, k) for k in range(1, frames + 1))
    return [mask for mask in masks if mask is not None]


def nearest_names(frames: int, k: int, family: str = "strided", count: int = 3) -> Sequence[str]:
    """Names of the `count` masks of `family` whose number of global frames is nearest to `k`."""
    by_distance = sorted(family_masks(frames, family), key=lambda mask: abs(len(mask.global_frames) - k))
    return [mask.name for mask in by_distance[:count]]
