"""Whether a student collapses: a few numbers of its videos beside the teacher's and its own first ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from vdit_cli.artifacts.atomic import free_name
from vdit_cli.distillation.checkpoints import checkpoint_place, newest_iteration, what_is_kept
from vdit_cli.distillation.student_networks import Learned
from vdit_cli.errors import FAILED, EvditError
from vdit_cli.measures import motion, sharpness
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.recipe_training import StudentOptions
from vdit_cli.timing import Progress

if TYPE_CHECKING:
    from vdit_cli.distillation.previews import Previews


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


@dataclass(frozen=True)
class Watch:
    """Looks at a student before its first iteration and at each checkpoint on schedule, and stops one that collapses.

    A collapsed student's checkpoint is set aside, so that the newest one is the last good one. `cures`
    are what else may help.
    """

    previews: Previews
    learned: Learned
    folder: Path
    label: str
    options: StudentOptions
    progress: Progress
    ranks: Ranks = ALONE
    cures: tuple[str, ...] = ()

    def __call__(self, iteration: int, average: Mapping[str, Tensor]) -> None:
        """Previews of what is kept, `average`. Raises EvditError (1) for a collapsed student."""
        previews, ranks = self.previews, self.ranks
        if ranks.is_first:
            previews.drop_after(iteration)
        if iteration % self.options.checkpoint_every and iteration != self.options.iterations:
            return
        first = ranks.is_first
        no_teacher, not_seen = ranks.any(
            first and previews.teacher_look() is None, first and iteration not in previews.noted()
        )
        # A network in shards is only whole where all ranks call it; another one the first rank calls alone.
        samples = first or previews.in_shards
        if no_teacher:
            count, steps = previews.count, previews.teacher_spec.steps
            self.progress.say(f"previews: {count} videos of the teacher, {steps} steps each")
            made = previews.sampled_teacher() if samples else None
            if first and made is not None:
                previews.keep_teacher(made)
        if not_seen:
            with self.learned.holding(average):
                made = previews.sampled_student() if samples else None
            if first and made is not None:
                previews.keep(iteration, made)
        why = ranks.from_first(lambda: self._judged(iteration))
        if why:
            kept = self._set_aside(iteration)
            raise EvditError(
                f"{self.label} collapsed at iteration {iteration}: {why}; {kept}",
                where=str(previews.folder),
                next_steps=[
                    f"--set {self.options.SECTION}.learning_rate=... (smaller) --allow-changed",
                    *self.cures,
                ],
                exit_code=FAILED,
            )

    def _judged(self, iteration: int) -> str:
        """Say what the look shows; returns why the student has collapsed, or nothing."""
        noted, teacher = self.previews.noted(), self.previews.teacher_look()
        look = noted[iteration]
        if teacher is None:
            return ""
        self.progress.say(
            f"{self.label}, iteration {iteration}: sharpness {look.sharpness:.4g} (teacher {teacher.sharpness:.4g}), "
            f"motion {look.motion:.4g} ({teacher.motion:.4g}), gap to the teacher {look.gap:.4g}"
        )
        return collapse_of(look, noted[min(noted)], teacher, self.options.collapse_factor) or ""

    def _set_aside(self, iteration: int) -> str:
        """Set the collapsed student's checkpoint aside; returns what is kept, in words."""

        def move() -> str:
            saved = checkpoint_place(self.folder / "checkpoints", iteration)
            if saved.is_dir():
                saved.rename(free_name(saved.with_name(f"collapsed-{iteration:06d}")))
            return what_is_kept(newest_iteration(saved.parent))

        return self.ranks.from_first(move)
