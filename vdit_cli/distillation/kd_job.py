"""A knowledge distillation as it was asked for, checked before any weight is loaded: options, data, models, masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vdit_cli.artifacts.run_dir import Request
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.base import LayerwiseTrainable
from vdit_cli.backbones.devices import pick_device
from vdit_cli.backbones.lora import ADAPTER_FOLDER, Lora
from vdit_cli.data.shards import INDEX, Clips
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation import student_job
from vdit_cli.distillation.fitting import number_format
from vdit_cli.distillation.kd_networks import open_kd, start_adapter
from vdit_cli.distillation.student_job import (
    StudentJob,
    check_data,
    check_student_options,
    fitted_to,
    idle_told,
    trains_nothing,
)
from vdit_cli.errors import EvditError, quoted
from vdit_cli.knobs import deciding
from vdit_cli.parallel.groups import ALONE, Ranks
from vdit_cli.recipe_training import DistillKdOptions
from vdit_cli.sampling.announcement import counted, masks_told, say_options
from vdit_cli.sampling.memory import gib
from vdit_cli.sampling.plans import AUTO, find_plan
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Progress

FIXED = (*student_job.FIXED, "start_weights", "timesteps", "guidance")
"""Options that shape the state or the result of a run: it can't go on with others, even where one insists."""
LABEL = "student"


@dataclass(frozen=True)
class KdJob(StudentJob):
    """A knowledge distillation that was checked; `start` is what teacher and student both begin as."""

    options: DistillKdOptions
    plan: MaskPlan
    start: LayerwiseTrainable
    adapter: Lora | None

    @property
    def sampler(self) -> Sampler | None:
        """How the start is sampled, and its student after it, where it has a sampler of its own."""
        own, milestones = self.start.defaults, self.start.scheduler_config.get("milestones")
        return Sampler(own.scheduler, tuple(milestones), own.guidance) if milestones else None

    @property
    def times(self) -> tuple[int, ...]:
        """The timesteps that the student is asked at: its sampler's, or all there are."""
        return self.sampler.timesteps if self.sampler else tuple(range(self.schedule.timesteps))

    @property
    def weights(self) -> str:
        """Digest of the start's weights: an adapter that is gone on with is the teacher's too."""
        return self.start.weights_digest

    @property
    def is_guided(self) -> bool:
        """Whether the student is sampled with guidance."""
        return self.start.defaults.guidance != 1.0

    @property
    def is_masked(self) -> tuple[bool, ...]:
        """Of each layer, whether its mask leaves tiles out."""
        return tuple(not mask.is_dense for mask in self.plan.masks)

    def preview_spec(self) -> SampleSpec:
        """How teacher and student are sampled alike."""
        own = self.start.defaults
        return self.spec(own.steps, own.guidance, self.sampler.timesteps if self.sampler else (), own.scheduler)

    def lineage(self) -> tuple[str, ...]:
        """Digests of the weights that the student comes from, nearest first."""
        return (self.start.weights_digest, *self.start.lineage)

    def below(self) -> tuple[str, ...]:
        """Digests of the weights that LoRA's pairs are added to and of what these come from, nearest first."""
        both = self.pair.student
        return (both.weights_digest, *both.lineage)


def check_kd_options(options: DistillKdOptions, ranks: Ranks = ALONE) -> None:
    """Raise EvditError (2) for what no distillation takes, for shards, and for a loss without any term."""
    check_student_options(options, ranks)
    if options.shard == "full":
        raise EvditError(
            "shard=full can't go with distill-kd: networks in shards are only called whole, and here layer by layer",
            where=options.where("shard") or "distill_kd.shard",
            next_steps=["--set distill_kd.shard=none --lora-rank 64"],
        )
    weights = ("attention_weight", "hidden_weight", "output_weight")
    if not any(getattr(options, key) for key in weights):
        raise EvditError(
            "all weights of the loss are 0: there is nothing to learn",
            where=next(filter(None, map(options.where, weights)), "distill_kd.attention_weight"),
            next_steps=["--set distill_kd.attention_weight=1"],
        )


def prepare(options: DistillKdOptions, clips: Clips, ranks: Ranks, progress: Progress) -> KdJob:
    """Open the models and hold data, size and masks against them. Raises EvditError (2) for misfits and no masks."""
    device = pick_device(options.device)
    pair, start = open_kd(options, device, progress)
    spec = check_data(options, clips, start)
    plan = find_plan(options.masks, start, spec, options.allow_other_weights)
    if all(mask.is_dense for mask in plan.masks):
        what = f"no plan lies with {options.checkpoint or start.name}" if options.masks == AUTO else "it is dense"
        of_start = f" --checkpoint {quoted(options.checkpoint)}" if options.checkpoint else ""
        raise EvditError(
            f"masks is {options.masks}, and {what}: under full attention there is nothing to distil",
            where=f"--masks {options.masks}",
            next_steps=[f"evdit search-masks --model {quoted(options.model)}{of_start} -o masks", "--masks masks"],
        )
    options = fitted_to(clips, options)
    schedule = NoiseSchedule.from_config(start.scheduler_config)
    adapter = start_adapter(start, options)
    return KdJob(options, clips, pair, plan, schedule, device, ranks, start, adapter)


def request_of(job: KdJob) -> Request:
    """What decides the run: the options that decide it, as they were resolved, the data, the plan, and the start."""
    options = job.options
    values = deciding(options)
    values |= {
        "plan": job.plan.digest,
        "start_weights": job.start.weights_digest,
        "timesteps": list(job.sampler.timesteps) if job.sampler else None,
        "guidance": job.start.defaults.guidance,
    }
    inputs = {"data": Path(options.data or "") / INDEX}
    return Request("distill-kd", options.model, values, inputs, dict(options.origins), fixed=FIXED, length="iterations")


def announce(job: KdJob, need: int, free: int, progress: Progress) -> None:
    """Say what will be trained and what memory it needs, which options were set, and what of them looks wrong."""
    options, start, device = job.options, job.start, job.device
    times = counted(len(job.times), "timestep") + ("" if job.sampler else ", all of the schedule's")
    progress.say(
        f"{start.name}: a student under {masks_told(job.plan)}, kept {job.plan.kept_share:.2f} and skipped "
        f"{job.plan.skipped_share:.2f} of the tiles, at {times}, {options.iterations} iterations of "
        f"{counted(options.batch_size, 'clip')} out of {job.data_told()}, {device} "
        f"{number_format(options.precision, device)}" + (f", {job.ranks.count} ranks" if job.ranks.count > 1 else "")
    )
    progress.say(f"memory: needs about {gib(need)}, {gib(free)} free on {device}")
    say_options("distill_kd", options, {}, start.name, progress)
    for line in doubts(job):
        progress.say(f"warning: {line}")


def doubts(job: KdJob) -> list[str]:
    """Options that were set and have no effect, and numbers that will hardly make a good student."""
    options = job.options
    told = idle_told(options, {"null_share": None if job.is_guided else "the student is sampled without guidance"})
    told += trains_nothing(options, ("learning_rate", "clip"))
    beside = Path(options.checkpoint or "") / "student" / ADAPTER_FOLDER
    if options.lora_rank and job.adapter is None and options.checkpoint and beside.is_dir():
        told.append(f"the pairs begin anew beside the merged weights: --checkpoint {beside} goes on with the adapter's")
    return told
