"""Every scheduler lays out the steps asked for, and takes Gaussian data along its closed-form path."""

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.diffusion.prediction import DIFFUSERS_NAMES, target
from vdit_cli.diffusion.schedules import SPACINGS, NoiseSchedule
from vdit_cli.diffusion.solvers import SCHEDULERS, make_scheduler, set_steps
from vdit_cli.errors import EvditError

PREDICTION_TYPE = {kind: name for name, kind in DIFFUSERS_NAMES.items()}


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading", None])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_any_count_of_steps_is_laid_out(name, spacing):
    config = {} if spacing is None else {"timestep_spacing": spacing}
    for steps in (1, 2, 3, 4, 7, 30, 50, 61, 100, 103, 457, 998):
        timesteps = set_steps(make_scheduler(name, config), steps)
        assert len(timesteps) == steps
        if steps == 1:
            assert timesteps[0] == 999


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_counts_outside_the_table_are_refused(name, steps):
    with pytest.raises(EvditError, match=f"{steps} steps"):
        set_steps(make_scheduler(name, {}), steps)


def test_a_count_that_would_repeat_timesteps_is_refused():
    with pytest.raises(EvditError, match="can't lay 1000 steps"):
        set_steps(make_scheduler("unipc", {"timestep_spacing": "linspace"}), 1000)


def test_names_and_predictions_that_no_scheduler_has():
    with pytest.raises(EvditError, match="unknown scheduler 'dim'") as caught:
        make_scheduler("dim", {})
    assert "ddim" in caught.value.next_steps
    with pytest.raises(EvditError, match="flow"):
        make_scheduler("ddim", {"prediction_type": "flow_prediction"})


def test_the_model_sets_its_schedule_and_the_table_sets_the_rest():
    scheduler = make_scheduler("ddim", {"beta_end": 0.012, "clip_sample": True, "timestep_spacing": "linspace"})
    assert scheduler.config.beta_end == 0.012
    assert scheduler.config.timestep_spacing == "linspace"
    assert not scheduler.config.clip_sample
    assert make_scheduler("ddim", {}).config.timestep_spacing == "trailing"
    assert make_scheduler("euler-ancestral", {}).config.timestep_spacing == "linspace"


@pytest.mark.parametrize("name", [name for name, solver in SCHEDULERS.items() if solver.takes_spacing])
def test_a_spacing_that_is_asked_for_stands_above_the_models(name):
    config = {"timestep_spacing": "trailing"}
    spacings = [spacing for spacing in SPACINGS if (name, spacing) != ("ddim", "linspace")]
    asked = {spacing: tuple(set_steps(make_scheduler(name, config, spacing), 4).tolist()) for spacing in spacings}
    assert asked["trailing"] == (999, 749, 499, 249) and len(set(asked.values())) == len(spacings)
    assert asked["leading"] == tuple(set_steps(make_scheduler(name, {"timestep_spacing": "leading"}), 4).tolist())


@pytest.mark.parametrize("name", [name for name, solver in SCHEDULERS.items() if solver.takes_numbers])
def test_numbers_are_laid_out_as_they_are(name):
    for numbers in ((999,), (800, 600), (998, 400, 0)):
        scheduler = make_scheduler(name, {"timestep_spacing": "leading"}, ",".join(map(str, numbers)))
        assert set_steps(scheduler, len(numbers)).tolist() == list(numbers)


def test_a_spacing_without_a_place_for_the_steps_is_refused_by_name():
    with pytest.raises(EvditError, match="ddim can't lay out the timesteps linspace: it steps by"):
        make_scheduler("ddim", {}, "linspace")
    with pytest.raises(EvditError, match="milestones can't lay out the timesteps linspace") as caught:
        make_scheduler("milestones", {}, "linspace")
    assert "--scheduler ddim" in caught.value.next_steps and "--scheduler milestones" not in caught.value.next_steps
    with pytest.raises(EvditError, match="timestep 500 is not on the noise schedule: timesteps are 0 to 499"):
        make_scheduler("ddim", {"num_train_timesteps": 500}, "500,3")
    with pytest.raises(EvditError, match="unknown spacing 'karras'") as caught:
        make_scheduler("ddim", {}, "karras")
    assert sorted(caught.value.next_steps) == [f"--timesteps {each}" for each in sorted(SPACINGS)]


@pytest.mark.numerical
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("steps", [50, 103])
def test_a_point_of_data_is_found_from_any_noise(name, kind, steps):
    """Data that is always c: the exact network output leads every scheduler to c, whatever noise it began with."""
    schedule = NoiseSchedule.from_config({})
    scheduler = make_scheduler(name, {"prediction_type": PREDICTION_TYPE[kind]})
    timesteps = set_steps(scheduler, steps)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    draws = {"generator": generators} if SCHEDULERS[name].draws_noise else {}
    c = torch.full((2, 4, 2, 3, 3), 0.7)
    x = noise = torch.randn(c.shape, generator=torch.Generator().manual_seed(5)) * scheduler.init_noise_sigma
    for t in timesteps:
        x_in = scheduler.scale_model_input(x, t)
        a, s = (_between(table, float(t)) for table in (schedule.alphas, schedule.sigmas))
        x = scheduler.step(target(kind, c, (x_in - a * c) / s, a, s), t, x, **draws).prev_sample
    if name == "ddim" and 1000 % steps:  # diffusers' DDIM ends at timestep 0 then, not at clean data: sigma_0 stays
        a, s = (table[[int(timesteps[0]), 0]].float() for table in (schedule.alphas, schedule.sigmas))
        # It steps by 9 and not by 9.7, which is worth another .007.
        assert_close(x, a[1] * c + s[1] * (noise - a[0] * c) / s[0], atol=0.04, planted=2 * c)
    else:
        assert_close(x, c, atol=0.02)


def _between(table: torch.Tensor, t: float) -> torch.Tensor:
    low = int(t)
    high = min(low + 1, 999)
    return (table[low] + (t - low) * (table[high] - table[low])).float()
