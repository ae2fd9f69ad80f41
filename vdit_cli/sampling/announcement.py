"""What is said before anything is sampled: a line of what will run, the options that were set, doubts of prompts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from vdit_cli.backbones.base import Backbone, Cut, as_read, cut_of, prompt_form
from vdit_cli.backbones.prompt_form import PromptForm
from vdit_cli.errors import EvditError, quoted
from vdit_cli.knobs import Section, flat, option_line
from vdit_cli.sampling.dense_steps import kept_share
from vdit_cli.sampling.memory import gib
from vdit_cli.sampling.prompts import EXAMPLE
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

SHOWN = 6
"""Of many words left out, so many of the first and the last are shown."""


def summary(
    backbone: Backbone,
    spec: SampleSpec,
    seeds: str,
    need_bytes: int,
    plan: MaskPlan | None = None,
    dense_steps: int = 0,
) -> str:
    """Model, size, sampler, masks and their file, seeds ("seed 0"), device, numbers and memory in one line."""
    dtype = str(backbone.dtype).removeprefix("torch.")
    sampler = f"{counted(spec.steps, 'step')} of {spec.scheduler}, guidance {spec.guidance:g}"
    size = f"{spec.video_frames} x {spec.height} x {spec.width}"
    masks = masks_told(plan)
    if dense_steps and plan is not None:
        kept = kept_share(plan.kept_share, dense_steps, spec.steps)
        then = f"then {masks}" if dense_steps < spec.steps else f"none under {masks}"
        masks = f"{counted(dense_steps, 'step')} of full attention, {then}, kept {kept:.2f} and skipped "
        masks += f"{1 - kept:.2f} of all steps' tiles"
    memory = f"about {gib(need_bytes)} of weights and tensors"
    return f"{backbone.name}: {size}, {sampler}, {masks}, {seeds}, {backbone.device} {dtype}, {memory}"


def masks_told(plan: MaskPlan | None) -> str:
    """A plan in words, with the file that it was read from: "masks 2:6 by plan.json"; None is full attention."""
    masks = "full attention" if plan is None or plan.is_dense else f"masks {plan.masks_text()}"
    return masks if plan is None or plan.origin is None else f"{masks} by {plan.origin}"


def say_options(section: str, options: Section, resolved: Mapping[str, Any], model: str, progress: Progress) -> None:
    """Say each option that was set, with its origin; the others are details. `resolved` has the model's own filled in.

    A line has the form of a recipe's key: `generate.steps: 20  # --steps 20`.
    """
    for key, given in flat(options):
        value, origin = resolved.get(key, given), options.where(key)
        tell = progress.say if origin else progress.detail
        own = "default" if given == value else f"default of {model}"
        tell(option_line(f"{section}.{key}", value, origin or own))


def prompt_doubts(backbone: Backbone, prompts: Sequence[str], strict: bool) -> dict[str, str]:
    """By prompt, what the model will not understand of it, with a sentence that works; only prompts with a doubt.

    Raises EvditError (exit 2) for a doubt where `strict`, and for a prompt of which the model knows no word.
    """
    form = prompt_form(backbone)
    found: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        known, unknown = backbone.unknown_words(prompt)
        cut = cut_of(backbone, as_read(backbone, prompt))
        words = prompt if cut and not unknown else " ".join(known)
        sentence = form.completed(prompt) if form else shortened(backbone, words) or EXAMPLE
        doubt = _doubt(backbone.name, form, prompt, unknown, cut)
        if doubt and (strict or not known):
            is_unquoted = len(prompts) > 1 and all(" " not in each for each in prompts)
            raise EvditError(
                f"{backbone.name} knows none of the words in {prompt!r}" if not known else doubt,
                where=f"the prompt {prompt!r}",
                next_steps=[
                    f"{quoted(' '.join(prompts))}  (quoted, it is one prompt)" if is_unquoted else quoted(sentence)
                ],
            )
        if doubt:
            found[prompt] = f"{doubt} (what works: {quoted(sentence)})"
    return found


def shortened(backbone: Backbone, prompt: str) -> str:
    """As many of the first words of a prompt as the text encoder reads whole, within the model's template."""
    words = prompt.split()
    fitting = bisect_left(range(1, len(words) + 1), True, key=lambda count: _is_cut(backbone, words[:count]))
    return " ".join(words[:fitting])


def _is_cut(backbone: Backbone, words: Sequence[str]) -> bool:
    return cut_of(backbone, as_read(backbone, " ".join(words))) is not None


def cut_text(cut: Cut) -> str:
    """A text that is too long in words: its tokens, the limit, and what is left out of it."""
    left_out = cut.words if len(cut.words) <= 2 * SHOWN else (*cut.words[:SHOWN], "...", *cut.words[-SHOWN:])
    number = counted(len(cut.words), "word")
    return f"reads {cut.limit} of {cut.tokens} tokens and leaves out the last {number}, {' '.join(left_out)!r}"


def _doubt(model: str, form: PromptForm | None, prompt: str, unknown: Sequence[str], cut: Cut | None) -> str:
    """What is wrong with a prompt for the model of that name, in words; "" where nothing is."""
    faults = [f"does not know {listed(map(repr, unknown))}"] if unknown else []
    if cut is not None:
        faults.append(cut_text(cut))
    if form is not None:
        missing = form.missing(prompt)
        if missing:
            faults.append(f"needs {listed(missing)}")
        elif not faults and not form.is_whole(prompt):
            faults.append(f"knows sentences of one form only, and {prompt!r} has another")
    return f"{model} {' and '.join(faults)}" if faults else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 step", "3 steps"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(words: Any) -> str:
    """Words as a person lists them: "size, colour and shape"."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
