"""Schedulers by name: the step from one timestep to the next, taken from diffusers and set for latents, or ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch

from vdit_cli.diffusion.prediction import kind_of
from vdit_cli.diffusion.schedules import SPACINGS
from vdit_cli.errors import EvditError, unknown_name


@dataclass(frozen=True)
class Solver:
    """One scheduler: its module and class, what is `fixed` for any model, and `defaults` a model may set.

    `draws_noise` says that each step adds fresh noise, from a generator a video; `steps_flow` that it takes models that
    predict a flow; `takes_spacing` and `takes_numbers` what `--timesteps` may be. `own_keys` of a config are for it
    alone.
    """

    module: str
    class_name: str
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    draws_noise: bool = False
    steps_flow: bool = False
    takes_spacing: bool = True
    takes_numbers: bool = False
    package: str = "diffusers.schedulers"
    own_keys: tuple[str, ...] = ()


SCHEDULERS = {
    "ddim": Solver(
        "scheduling_ddim",
        "DDIMScheduler",
        # Latents have no range to clip to; the last step goes to clean data.
        fixed={"clip_sample": False, "set_alpha_to_one": True},
        # The class's own "leading" never visits the noisiest timestep, where generation starts.
        defaults={"timestep_spacing": "trailing"},
        takes_numbers=True,
    ),
    "euler-ancestral": Solver(
        "scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", draws_noise=True
    ),
    "dpm++2m": Solver(
        "scheduling_dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        fixed={"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
        takes_numbers=True,
    ),
    "unipc": Solver(
        "scheduling_unipc_multistep",
        "UniPCMultistepScheduler",
        fixed={"predict_x0": True, "solver_order": 2, "final_sigmas_type": "zero"},
        takes_numbers=True,
    ),
    # diffusers' DDIM steps past its next timestep where the count of steps does not divide the table.
    "milestones": Solver(
        "milestone_scheduler",
        "MilestoneScheduler",
        steps_flow=True,
        takes_spacing=False,
        takes_numbers=True,
        package="vdit_cli.diffusion",
        own_keys=("shift", "milestones"),
    ),
}
"""Source: DDIM arXiv 2010.02502, Euler ancestral k-diffusion, DPM++ 2M arXiv 2211.01095, UniPC arXiv 2302.04867."""

MODEL_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
)
"""What of a model's scheduler_config.json belongs to the model, not to the scheduler class that wrote it."""


def timesteps_in(asked: str | None) -> tuple[int, ...]:
    """The timesteps that `--timesteps` gives as numbers, noisiest first; none where it is a spacing, or not given.

    Raises EvditError for a spacing that diffusers does not have and for numbers that don't fall.
    """
    if asked is None or asked in SPACINGS:
        return ()
    words = asked.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise unknown_name("spacing", asked, SPACINGS, where=f"--timesteps {asked}", flag="--timesteps")
    numbers = tuple(map(int, words))
    if any(above <= below for above, below in pairwise(numbers)):
        raise EvditError(
            f"the timesteps {asked} don't fall: the noisiest must stand first, each below the one before",
            where=f"--timesteps {asked}",
            next_steps=[f"--timesteps {','.join(map(str, sorted(set(numbers), reverse=True)))}"],
        )
    return numbers


def steps_of(asked: int | None, timesteps: str | None, own: int) -> int:
    """How many steps are taken: those asked for, else one a number of `--timesteps`, else the model's `own`.

    Raises EvditError where steps and numbers are asked for that differ.
    """
    numbers = timesteps_in(timesteps)
    if asked is not None and numbers and asked != len(numbers):
        raise EvditError(
            f"{asked} steps and {len(numbers)} timesteps are asked for: the numbers alone tell the steps",
            where=f"--steps {asked}",
            next_steps=[f"no --steps and --timesteps {timesteps}"],
        )
    return asked if asked is not None else len(numbers) or own


def make_scheduler(name: str, config: dict, timesteps: str | None = None) -> Any:
    """The scheduler called `name` for the model whose scheduler_config.json is `config`.

    `timesteps` are a spacing in place of the config's, or numbers, which `set_steps` then lays out as they are.
    Raises EvditError for a name that is not in `SCHEDULERS` and for a prediction or timesteps that it can't step.
    """
    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS, where=f"--scheduler {name}")
    numbers = timesteps_in(timesteps)
    if timesteps is not None:
        _check_takes(name, timesteps, config.get("num_train_timesteps", 1000))
    # diffusers' DDIM steps by T / steps whatever its timesteps are; from milestone to milestone is DDIM too.
    solver = SCHEDULERS["milestones" if name == "ddim" and numbers else name]
    if kind_of(config.get("prediction_type", "epsilon")) == "flow" and not solver.steps_flow:
        raise EvditError(
            f"scheduler {name} steps noise or velocity predictions, this model predicts a flow",
            where=f"--scheduler {name}",
            next_steps=["--scheduler milestones"],
        )
    scheduler_class = getattr(import_module(f"{solver.package}.{solver.module}"), solver.class_name)
    of_the_model = {key: config[key] for key in (*MODEL_KEYS, *solver.own_keys) if key in config}
    if timesteps is not None and not numbers:
        of_the_model["timestep_spacing"] = timesteps
    scheduler = scheduler_class.from_config({**solver.defaults, **of_the_model, **solver.fixed})
    if numbers:
        scheduler.milestones = numbers
    return scheduler


def _check_takes(name: str, timesteps: str, most: int) -> None:
    """Raise EvditError where the scheduler `name`, or a table of `most` timesteps, has no place for `timesteps`."""
    numbers = timesteps_in(timesteps)
    wanted = "takes_numbers" if numbers else "takes_spacing"
    if numbers and numbers[0] >= most:
        raise EvditError(
            f"timestep {numbers[0]} is not on the noise schedule: timesteps are 0 to {most - 1}",
            where=f"--timesteps {timesteps}",
        )
    if name == "ddim" and timesteps == "linspace":
        raise EvditError(
            "scheduler ddim can't lay out the timesteps linspace: it steps by the whole number T / steps, past them",
            where=f"--timesteps {timesteps}",
            next_steps=["--timesteps trailing", "--timesteps 999,666,333,0  (the numbers themselves)"],
        )
    if not getattr(SCHEDULERS[name], wanted):
        raise EvditError(
            f"scheduler {name} can't lay out the timesteps {timesteps}",
            where=f"--timesteps {timesteps}",
            next_steps=[f"--scheduler {each}" for each, solver in SCHEDULERS.items() if getattr(solver, wanted)],
        )


def set_steps(scheduler: Any, steps: int) -> torch.Tensor:
    """Lay `steps` timesteps out on the scheduler; returns them, noisiest first, on the CPU, where stepping reads them.

    A single step is always laid at the noisiest timestep; the scheduler's config then says "trailing".
    Raises EvditError for a count that the scheduler can't lay out as that many falling timesteps.
    """
    most = scheduler.config.num_train_timesteps
    if not 1 <= steps <= most:
        raise EvditError(
            f"{steps} steps can't be taken: steps must be 1 to {most}",
            where=f"--steps {steps}",
            next_steps=["--steps 50"],
        )
    if steps == 1 and scheduler.config.timestep_spacing != "trailing":
        # One point of any other spacing is timestep 0: the network would be told that pure noise is clean.
        scheduler.register_to_config(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas") and len(getattr(scheduler, "milestones", ())) == steps:
        _take_numbers(scheduler)
    if len(scheduler.timesteps) == steps + 1 and scheduler.timesteps[-1] < 0:
        _drop_overrun(scheduler, steps)
    timesteps = scheduler.timesteps
    falling = bool((timesteps.diff() < 0).all())
    if len(timesteps) != steps or not falling or not 0 <= float(timesteps[-1]) <= float(timesteps[0]) < most:
        raise EvditError(
            f"{type(scheduler).__name__} can't lay {steps} steps on {most} timesteps "
            f'with spacing "{scheduler.config.timestep_spacing}"',
            where=f"--steps {steps}",
            next_steps=["--steps 50", "--scheduler ddim"],
        )
    return timesteps


def _take_numbers(scheduler: Any) -> None:
    """Lay a solver of x0 in log SNR at its `milestones`, which ends on clean data as ever."""
    numbers = torch.tensor(scheduler.milestones)
    signal = scheduler.alphas_cumprod[numbers].double()
    scheduler.timesteps = numbers
    scheduler.sigmas = torch.cat([((1 - signal) / signal).sqrt(), signal.new_zeros(1)]).float()


def _drop_overrun(scheduler: Any, steps: int) -> None:
    """Take away the timestep -1 that rounding in diffusers' "trailing" adds for some counts (61, 103, 121, ...)."""
    scheduler.timesteps = scheduler.timesteps[:-1]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
