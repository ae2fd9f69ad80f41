"""Whether a student collapses: a few numbers of its videos beside the teacher's and its own first ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vdit_cli.measures import motion, sharpness


@dataclass(frozen=True)
class Look:
    """Means over the previews: sharpness and motion of the videos, and the gap to the teacher's latents.

    `gap` is the root of the mean squared difference of latents made from the same noise and prompts.
    """

    sharpness: float
    motion: float
    gap: float

    @classmethod
    def of(cls, videos: Sequence[np.ndarray], gap: float) -> Look:
        """The look of videos, each uint8 (T, H, W, 3)."""
        return cls(
            float(np.mean([sharpness(video) for video in videos])),
            float(np.mean([motion(video) for video in videos])),
            gap,
        )


def collapse_of(now: Look, first: Look, teacher: Look, factor: float) -> str | None:
    """Why a student has collapsed, in words, or None.

    It has where sharpness or motion is more than `factor` times, or less than 1 / factor of, the teacher's and further
    from it than at the first look, where the gap is `factor` times the first one, and where a number is not finite.
    """
    for name in ("sharpness", "motion", "gap"):
        if not math.isfinite(getattr(now, name)):
            return f"{name} is {getattr(now, name)}"
    for name in ("sharpness", "motion"):
        mine, began, wanted = (getattr(look, name) for look in (now, first, teacher))
        if wanted > 0 and abs(log_ratio(mine, wanted)) > max(math.log(factor), abs(log_ratio(began, wanted))):
            return f"{name} is {mine:.4g}, {mine / wanted:.2g} times the teacher's {wanted:.4g}"
    if first.gap > 0 and now.gap > factor * first.gap:
        return f"the gap to the teacher is {now.gap:.4g}, {now.gap / first.gap:.2g} times that of the untrained student"
    return None


def log_ratio(value: float, wanted: float) -> float:
    """log(value / wanted), minus infinity for no value at all."""
    return math.log(value / wanted) if value > 0 else -math.inf
