"""What is said before anything is sampled: a line of what will run, the options that were set, doubts of prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vdit_cli.backbones.base import Backbone, prompt_form
from vdit_cli.errors import EvditError
from vdit_cli.knobs import Section, flat
from vdit_cli.sampling.memory import gib
from vdit_cli.sampling.prompts import EXAMPLE
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.timing import Progress


def summary(backbone: Backbone, spec: SampleSpec, seeds: str, need_bytes: int) -> str:
    """Model, size, sampler, seeds ("seed 0"), device, numbers and memory in one line."""
    dtype = str(backbone.dtype).removeprefix("torch.")
    return (
        f"{backbone.name}: {spec.video_frames} x {spec.height} x {spec.width}, {spec.steps} steps of {spec.scheduler}, "
        f"guidance {spec.guidance:g}, {seeds}, {backbone.device} {dtype}, about {gib(need_bytes)}"
    )


def say_options(section: str, options: Section, resolved: Mapping[str, Any], model: str, progress: Progress) -> None:
    """Say each option that was set, with its origin; the others are details. `resolved` has the model's own filled in.

    A line has the form of a recipe's key: `generate.steps: 20  # --steps 20`.
    """
    for key, given in flat(options):
        value, origin = resolved.get(key, given), options.where(key)
        tell = progress.say if origin else progress.detail
        own = "default" if given == value else f"default of {model}"
        tell(f"{section}.{key}: {json.dumps(value, ensure_ascii=False)}  # {origin or own}")


def prompt_doubts(backbone: Backbone, prompts: Sequence[str], strict: bool) -> dict[str, str]:
    """By prompt, what the model will not understand of it, with a sentence that works; only prompts with a doubt.

    Raises EvditError (exit 2) for a doubt where `strict`, and for a prompt of which the model knows no word.
    """
    found: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        known, unknown = backbone.unknown_words(prompt)
        form = prompt_form(backbone)
        sentence = form.completed(prompt) if form else " ".join(known) or EXAMPLE
        doubt = _doubt(backbone, prompt, unknown)
        if doubt and (strict or not known):
            raise EvditError(
                f"{backbone.name} knows none of the words in {prompt!r}" if not known else doubt,
                where=f"the prompt {prompt!r}",
                next_steps=[f'"{sentence}"'],
            )
        if doubt:
            found[prompt] = f'{doubt} (what works: "{sentence}")'
    return found


def _doubt(backbone: Backbone, prompt: str, unknown: Sequence[str]) -> str:
    """What is wrong with a prompt for this model, in words; "" where nothing is."""
    faults = [f"does not know {listed(map(repr, unknown))}"] if unknown else []
    form = prompt_form(backbone)
    if form is not None:
        missing = form.missing(prompt)
        if missing:
            faults.append(f"needs {listed(missing)}")
        elif not unknown and not form.is_whole(prompt):
            faults.append(f"knows sentences of one form only, and {prompt!r} has another")
    return f"{backbone.name} {' and '.join(faults)}" if faults else ""


def listed(words: Any) -> str:
    """Words as a person lists them: "size, colour and shape"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
