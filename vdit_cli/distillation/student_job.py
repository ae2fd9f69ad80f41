"""What every distillation checks before any weight is loaded: options, data and models fit; and what it is then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from vdit_cli.artifacts.atomic import free_name
from vdit_cli.artifacts.video_file import check_encoder
from vdit_cli.attention.bind import Attend
from vdit_cli.backbones.base import Backbone
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import Clips
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.fitting import check_shard, number_format
from vdit_cli.distillation.student_networks import Pair
from vdit_cli.errors import EvditError, quoted
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.recipe_training import StudentOptions
from vdit_cli.sampling.announcement import counted
from vdit_cli.sampling.plans import check_kernel
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.plan import MaskPlan

Options = TypeVar("Options", bound=StudentOptions)
FIXED = (
    "model",
    "text_encoder",
    "checkpoint",
    "masks",
    "data",
    "clips",
    "held_out",
    "lora_rank",
    "muon_rate",
    "adam",
    "seed",
    "plan",
)
"""Options that shape the state or the result of a run: it can't go on with others, even where one insists."""


@dataclass(frozen=True)
class StudentJob:
    """A distillation that was checked: data and models fit each other, no weight is loaded yet."""

    options: StudentOptions
    clips: Clips
    pair: Pair
    plan: MaskPlan | None
    schedule: NoiseSchedule
    device: torch.device
    ranks: Ranks

    def data_told(self) -> str:
        """How much data there is, and what of it is trained on where that is not the rest."""
        first = f"the first {self.options.clips} of " if self.options.clips else ""
        return f"{first}{len(self.clips)} ({self.options.held_out} held out)"

    @property
    def weights(self) -> str:
        """Digest of the teacher's weights."""
        return self.pair.teacher.weights_digest

    @property
    def trained(self) -> int:
        """How many clips are trained on, from the first."""
        return self.options.clips or len(self.clips) - self.options.held_out

    def spec(self, steps: int, guidance: float, timesteps: Sequence[int] = (), how: str = "milestones") -> SampleSpec:
        """The previews' sampling at the size of the data; a start's own `timesteps` are not its student's."""
        size, laid_out = self.clips.size, ",".join(map(str, timesteps)) or None
        return SampleSpec(size["video_frames"], size["height"], size["width"], steps, guidance, how, laid_out)


def check_student_options(options: StudentOptions, ranks: Ranks = ALONE) -> None:
    """Raise EvditError (2) for missing data, unknown kernels, batches with fewer clips than parts, and shards."""
    check_kernel(options.kernel)
    if options.previews:
        check_encoder(".mp4")
    if not options.data:
        place = free_name(Path("data"))
        raise EvditError(
            "there is no data to train on: --data names a folder that evdit prepare-data made",
            where="--data",
            next_steps=[
                f"evdit prepare-data --model {quoted(options.model)} --source shapes -o {place}",
                f"--data {place}",
            ],
        )
    check_parts(options, ranks.count)
    check_shard(options)
    if options.shard == "full" and options.muon_rate:
        raise EvditError(
            "shard=full can't go with Muon: its step wants a matrix whole, and a rank holds a share of it",
            where=options.where("muon_rate") or options.where("shard"),
            next_steps=[f"--set {options.SECTION}.muon_rate=0", f"--set {options.SECTION}.shard=none"],
        )


def check_parts(options: StudentOptions, ranks: int) -> None:
    """Raise EvditError (2) where a batch has fewer samples than `ranks` ranks have parts."""
    batch, parts, section = options.batch_size, options.accumulation, options.SECTION
    if batch >= ranks * parts:
        return
    need = counted(parts, "part") if ranks == 1 else f"{ranks} ranks of {counted(parts, 'part')} each"
    raise EvditError(
        f"batch_size is {batch}: {need} need at least {counted(ranks * parts, 'clip')}",
        where=options.where("accumulation") or options.where("batch_size") or f"{ranks} ranks (--gpus, torchrun)",
        next_steps=[
            f"--set {section}.batch_size={ranks * parts}",
            *([f"--set {section}.accumulation={batch // ranks}"] if parts > 1 and batch >= ranks else []),
            *([f"--gpus {batch // parts}"] if ranks > 1 and batch >= parts else []),
            *([f"--gpus 1 --set {section}.accumulation=1"] if batch < min(ranks, parts) else []),
        ],
    )


def check_data(options: StudentOptions, clips: Clips, teacher: Backbone) -> SampleSpec:
    """The size of the clips. Raises EvditError (2) for those of another model, of another shape, and for none."""
    clips.facts.check(DataFacts.of(teacher), str(clips.folder), options.model)
    size = clips.size
    shape = teacher.latent_shape(size["video_frames"], size["height"], size["width"])
    if shape != clips.latent_shape or not len(clips):
        raise EvditError(
            f"{clips.folder} holds {len(clips)} clips of latents {list(clips.latent_shape)}: {teacher.name} needs "
            f"clips of {list(shape)}",
            where=f"--data {clips.folder}",
            next_steps=[
                f"evdit prepare-data --model {quoted(options.model)} --source shapes "
                f"-o {quoted(free_name(clips.folder))}"
            ],
        )
    return SampleSpec(size["video_frames"], size["height"], size["width"], 1, 1.0, "milestones")


def fitted_to(clips: Clips, options: Options) -> Options:
    """The options with no more previews than there are clips, and at most an eighth of these held out.

    Raises EvditError (2) where more clips are to be trained on than are not held out.
    """
    previews, held_out = min(options.previews, len(clips)), min(options.held_out, len(clips) // 8)
    options = replace(options, previews=previews, held_out=held_out)
    most = len(clips) - options.held_out
    if options.clips is not None and options.clips > most:
        raise EvditError(
            f"clips is {options.clips}: {clips.folder} holds {len(clips)} clips, {options.held_out} of them held out",
            where=options.where("clips") or f"{options.SECTION}.clips",
            next_steps=[f"--set {options.SECTION}.clips={most}"],
        )
    return options


def idle_told(options: StudentOptions, causes: Mapping[str, str | None]) -> list[str]:
    """Options that were set and change nothing beside the others, each with its cause: those of every distillation too.

    `causes` are why the command's own options are idle, None where they are not.
    """
    by_muon = "muon_rate moves all that is trained, LoRA's pairs" if options.lora_rank and options.muon_rate else None
    unwatched = None if options.previews else "without previews nothing is watched"
    idle = {**causes, "collapse_factor": unwatched, "learning_rate": by_muon, "adam": by_muon}
    return [f"{options.where(key)} has no effect: {why}" for key, why in idle.items() if why and options.where(key)]


def trains_nothing(options: StudentOptions, keys: Sequence[str]) -> list[str]:
    """Of the numbers `keys` those that were set to 0, with what that means; beside Muon's, a rate of 0 leaves some."""
    zeros = [key for key in keys if getattr(options, key) == 0]
    return [f"{options.where(key)} trains nothing" for key in zeros if key != "learning_rate" or not options.muon_rate]


def bind_student(job: StudentJob, plan: MaskPlan) -> tuple[Attend, ...]:
    """Put the plan's masks on the student, bound for what runs: part of a batch, in the type of matrix products."""
    options, device = job.options, job.device
    dtype = torch.bfloat16 if number_format(options.precision, device) == "bfloat16" else None
    part = math.ceil(options.batch_size / options.accumulation)
    return job.pair.student.apply_plan(plan, part, options.kernel, needs_grad=True, dtype=dtype)
