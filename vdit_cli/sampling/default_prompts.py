"""The prompts that a model is analysed with where the person gives none: the first two contrast, all go into means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vdit_cli.backbones.base import Backbone
from vdit_cli.errors import EvditError
from vdit_cli.sampling.prompts import read_prompts

COUNT = 4
"""Default prompts taken where no number is asked for."""

NATURAL = (
    "a sailing boat crosses a calm bay at dusk, seen from the shore",
    "a crowded night market in the rain, neon signs, people with umbrellas walking towards the camera",
    "close-up of a chef slicing vegetables on a wooden board",
    "a snowboarder jumps over a ridge, the camera follows from behind",
    "an old man feeds pigeons on a sunny square",
    "time lapse of clouds over a mountain lake",
    "a red sports car drives along a coastal road",
    "a campfire burns in a dark forest",
)
WORLD = (
    "a large red circle moving right over a black background",
    "a small cyan cross bouncing over a checkered background, and a large orange square growing",
    "a small white triangle circling over a navy background",
    "a large green ring standing still over a beige background",
    "a small yellow square moving up over a gray background",
    "a large magenta cross shrinking over a black background",
    "a small blue circle moving down over a beige background",
    "a large orange triangle moving left over a navy background",
)
DEFAULTS = (NATURAL, WORLD)
"""Sets of default prompts; the first whose words a model all has tokens for is taken, else the last."""


def choose_prompts(file: Path | None, count: int | None, backbone: Backbone) -> tuple[str, ...]:
    """The first `count` prompts of `file` (None: all), or of the default set that the model can read (None: COUNT).

    Raises EvditError (exit 2) for a file without prompts and for more than there are.
    """
    if file is not None:
        found: Sequence[str] = read_prompts(file)
        where = f"{file} holds"
    else:
        found = next((each for each in DEFAULTS if _all_known(each, backbone)), DEFAULTS[-1])
        where = "the default set holds"
        count = COUNT if count is None else count
    if count is not None and not 1 <= count <= len(found):
        raise EvditError(
            f"{count} prompts were asked for: {where} {len(found)}, and at least 1 is needed",
            where=f"--num-prompts {count}",
            next_steps=[f"--num-prompts {min(max(count, 1), len(found))}", "--prompts-file FILE"],
        )
    return tuple(found[:count])


def _all_known(prompts: Sequence[str], backbone: Backbone) -> bool:
    return not any(backbone.unknown_words(prompt)[1] for prompt in prompts)
