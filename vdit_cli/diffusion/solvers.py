"""Schedulers by name: the step from one timestep to the next, taken from diffusers and set for latents, or ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch

from vdit_cli.diffusion.prediction import kind_of
from vdit_cli.errors import EvditError, unknown_name


@dataclass(frozen=True)
class Solver:
    """One scheduler: its module and class, what is `fixed` for any model, and `defaults` a model may set.

    `draws_noise` says that each step adds fresh noise, from a generator a video; `steps_flow` that it takes models that
    predict a flow. `own_keys` of a config are for it alone.
    """

    module: str
    class_name: str
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    draws_noise: bool = False
    steps_flow: bool = False
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
    ),
    "euler-ancestral": Solver(
        "scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler", draws_noise=True
    ),
    "dpm++2m": Solver(
        "scheduling_dpmsolver_multistep",
        "DPMSolverMultistepScheduler",
        fixed={"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"},
    ),
    "unipc": Solver(
        "scheduling_unipc_multistep",
        "UniPCMultistepScheduler",
        fixed={"predict_x0": True, "solver_order": 2, "final_sigmas_type": "zero"},
    ),
    # diffusers' DDIM steps past its next timestep where the count of steps does not divide the table.
    "milestones": Solver(
        "milestone_scheduler",
        "MilestoneScheduler",
        steps_flow=True,
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


def make_scheduler(name: str, config: dict) -> Any:
    """The scheduler called `name` for the model whose scheduler_config.json is `config`.

    Raises EvditError for a name that is not in `SCHEDULERS` and for a prediction that this scheduler can't step.
    """
    if name not in SCHEDULERS:
        raise unknown_name("scheduler", name, SCHEDULERS, where=f"--scheduler {name}")
    solver = SCHEDULERS[name]
    if kind_of(config.get("prediction_type", "epsilon")) == "flow" and not solver.steps_flow:
        raise EvditError(
            f"scheduler {name} steps noise or velocity predictions, this model predicts a flow",
            where=f"--scheduler {name}",
            next_steps=["--scheduler milestones"],
        )
    scheduler_class = getattr(import_module(f"{solver.package}.{solver.module}"), solver.class_name)
    of_the_model = {key: config[key] for key in (*MODEL_KEYS, *solver.own_keys) if key in config}
    return scheduler_class.from_config({**solver.defaults, **of_the_model, **solver.fixed})


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


def _drop_overrun(scheduler: Any, steps: int) -> None:
    """Take away the timestep -1 that rounding in diffusers' "trailing" adds for some counts (61, 103, 121, ...)."""
    scheduler.timesteps = scheduler.timesteps[:-1]
    scheduler.num_inference_steps = steps
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
