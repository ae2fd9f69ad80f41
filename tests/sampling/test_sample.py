"""The denoising loop, judged by the closed form for Gaussian data and by its promises about seeds and batches."""

from itertools import pairwise

import pytest
import torch

from tests.closeness import assert_close
from tests.sampling.fakes import DATA_STD, GaussianBackbone
from vdit_cli.backbones.base import TextStates
from vdit_cli.diffusion.solvers import SCHEDULERS, make_scheduler, set_steps
from vdit_cli.errors import FAILED, INTERRUPTED, EvditError, Interrupted
from vdit_cli.sampling.noise import generators_for, initial_noise
from vdit_cli.sampling.sample import SampleSpec, sample
from vdit_cli.timing import Silent


def _spec(**changes) -> SampleSpec:
    return SampleSpec(
        **{
            "video_frames": 5,
            "height": 16,
            "width": 16,
            "steps": 20,
            "guidance": 1.0,
            "scheduler": "ddim",
            **changes,
        }
    )


def _run(backbone, spec, prompts, seeds, progress=None):
    text, null = backbone.encode_text(prompts), backbone.encode_text([""])
    null_text = null if spec.guided else None
    return sample(backbone, spec, text, null_text, generators_for(seeds), progress or Silent())


@pytest.mark.numerical
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_ddim_equals_the_closed_form(prediction_type, steps):
    backbone = GaussianBackbone(prediction_type)
    made = _run(backbone, _spec(steps=steps), ["7"], [3])
    start = initial_noise((4, 2, 2, 2), generators_for([3]), "cpu")
    timesteps = [round(1000 - i * 1000 / steps) - 1 for i in range(steps)]
    assert_close(made, backbone.ddim_path(start, 0.7, timesteps), atol=3e-4, rtol=3e-4)


@pytest.mark.numerical
def test_guidance_equals_the_closed_form_of_the_extrapolated_mean():
    """Both branches are affine in the mean, so guidance w is the unguided path of the mean w m."""
    backbone = GaussianBackbone()
    guided = _run(backbone, _spec(guidance=3.0), ["2"], [0])
    plain = _run(backbone, _spec(), ["6"], [0])
    assert_close(guided, plain)


def test_guidance_makes_one_call_of_both_branches_and_without_it_there_is_no_null_branch():
    backbone = GaussianBackbone()
    _run(backbone, _spec(guidance=3.0, steps=2), ["2", "33"], [0, 1])
    assert backbone.batches == [4, 4]
    backbone.batches.clear()
    _run(backbone, _spec(steps=2), ["2", "33"], [0, 1])
    assert backbone.batches == [2, 2]


@pytest.mark.numerical
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_video_does_not_depend_on_its_batch(scheduler):
    spec = _spec(scheduler=scheduler, guidance=2.0, steps=6)
    prompts, seeds = ["1", "2", "3"], [5, 6, 7]
    together = _run(GaussianBackbone(), spec, prompts, seeds)
    for row in range(3):
        alone = _run(GaussianBackbone(), spec, prompts[row : row + 1], seeds[row : row + 1])
        assert_close(together[row : row + 1], alone, atol=1e-3)
    assert torch.equal(together, _run(GaussianBackbone(), spec, prompts, seeds))


@pytest.mark.numerical
def test_each_video_draws_its_own_noise():
    spec = _spec(scheduler="euler-ancestral", steps=6)
    same_seed = _run(GaussianBackbone(), spec, ["1", "1"], [5, 5])
    assert_close(same_seed[0], same_seed[1])
    other_seed = _run(GaussianBackbone(), spec, ["1", "1"], [5, 6])
    assert (other_seed[0] - other_seed[1]).abs().max() > 0.1
    ddim = _run(GaussianBackbone(), _spec(steps=6), ["1"], [5])
    assert (ddim[0] - same_seed[0]).abs().max() > 0.01


@pytest.mark.numerical
def test_many_samples_have_the_mean_and_spread_of_the_data():
    """The ancestral scheduler adds noise at each step: every step changes the spread as in closed form.

    From sigma s to t, t sqrt(1 - t^2 / s^2) is new noise, and Euler goes to t^2 / s: of x - mean 1 + (t^2 / s - s) s /
    (s^2 + std^2) is left. The end has the data's mean, and its spread but for the size of the steps.
    """
    count = 2048
    made = _run(GaussianBackbone(), _spec(scheduler="euler-ancestral", steps=100), ["7"] * count, range(count))
    scheduler = make_scheduler("euler-ancestral", GaussianBackbone().scheduler_config)
    set_steps(scheduler, 100)
    sigmas = scheduler.sigmas.double().tolist()
    variance = sigmas[0] ** 2
    for s, t in pairwise(sigmas):
        gain = 1 + (t**2 / s - s) * s / (s**2 + DATA_STD**2)
        variance = gain**2 * variance + t**2 * (1 - t**2 / s**2)
    assert_close(made.mean(), 0.7, atol=0.02)
    assert_close(made.std(), variance**0.5, atol=0.02)
    assert 0.9 * DATA_STD < variance**0.5 < DATA_STD


class _StopAfter(Silent):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps
        self.notes: list[str] = []

    def advance(self, note: str = "") -> None:
        self.left -= 1
        self.notes.append(note)

    def should_stop(self) -> bool:
        return self.left <= 0


def test_the_first_ctrl_c_stops_after_the_step_at_hand():
    backbone, progress = GaussianBackbone(), _StopAfter(3)
    with pytest.raises(Interrupted, match="step 3 of 20") as caught:
        _run(backbone, _spec(), ["1"], [0], progress)
    assert caught.value.exit_code == INTERRUPTED
    assert len(backbone.batches) == 3
    assert all(note.endswith("s a step") for note in progress.notes)


def test_a_stop_in_the_last_step_loses_nothing():
    assert _run(GaussianBackbone(), _spec(steps=3), ["1"], [0], _StopAfter(3)).shape == (1, 4, 2, 2, 2)


def test_latents_that_are_not_finite_are_an_error():
    backbone = GaussianBackbone()
    broken = TextStates(torch.full((1, 2, 1), float("nan")), torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(EvditError, match="not finite after 2 steps in float32") as caught:
        sample(backbone, _spec(steps=2), broken, None, generators_for([0]), Silent())
    assert caught.value.exit_code == FAILED


def test_wrong_calls_are_refused():
    backbone = GaussianBackbone()
    text = backbone.encode_text(["1", "2"])
    with pytest.raises(ValueError, match="2 prompts for 1 generators"):
        sample(backbone, _spec(), text, None, generators_for([0]), Silent())
    with pytest.raises(ValueError, match="needs a null text"):
        sample(backbone, _spec(guidance=2.0), text, None, generators_for([0, 1]), Silent())


class Preparing(GaussianBackbone):
    """Prepares text as a string, so that only what was prepared can have been used."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[TextStates] = []

    def prepare_text(self, text):
        self.prepared.append(text)
        return "prepared"

    def make_fast(self, compiled):
        raise AssertionError("sampling leaves the weights as they are")

    def denoise(self, x_BCFhw, t_B, text):
        assert text == "prepared"
        return super().denoise(x_BCFhw, t_B, self.prepared[-1])


def test_text_is_prepared_once_a_video_where_the_backbone_can():
    spec, backbone = _spec(steps=5, guidance=2.0), Preparing()
    made = _run(backbone, spec, ["1", "2"], [0, 1])
    assert len(backbone.prepared) == 1
    assert len(backbone.prepared[0].states_BLC) == 4
    assert torch.equal(made, _run(GaussianBackbone(), spec, ["1", "2"], [0, 1]))
