"""The students' sampler: DDIM's own numbers where those are exact, its own milestones, and Euler for flows."""

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.diffusion.milestones import Milestones
from vdit_cli.diffusion.solvers import make_scheduler, set_steps
from vdit_cli.errors import EvditError

pytestmark = pytest.mark.numerical


def _sampled(name: str, config: dict, steps: int, network) -> torch.Tensor:
    scheduler = make_scheduler(name, config)
    x = torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for t in set_steps(scheduler, steps):
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 4, 20])
def test_it_is_ddim_where_steps_divide_the_table(prediction, steps):
    """diffusers' DDIM as the peer, on a network that is no one's exact answer."""
    config = {"prediction_type": prediction}
    ours, peer = (
        _sampled(name, config, steps, lambda x, t: torch.tanh(x) + t / 2000) for name in ("milestones", "ddim")
    )
    assert_close(ours, peer, rtol=1e-4, atol=1e-4)


def test_a_flow_is_stepped_by_euler():
    steps, x = 5, torch.randn(2, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = _sampled("milestones", {"prediction_type": "flow_prediction"}, steps, lambda x, t: 0.3 * x - 1)
    for _ in range(steps):
        x = x - (0.3 * x - 1) / steps
    assert_close(made, x)


def test_a_student_brings_its_own_milestones():
    config = {"milestones": (999, 600, 100)}
    assert set_steps(make_scheduler("milestones", config), 3).tolist() == [999, 600, 100]
    assert set_steps(make_scheduler("milestones", config), 7).tolist() == list(Milestones(7).sampled)
    assert set_steps(make_scheduler("ddim", config), 4).tolist() == [999, 749, 499, 249], "others never see them"
    with pytest.raises(EvditError, match="milestone 1000 is not on the noise schedule"):
        make_scheduler("milestones", {"milestones": (1000, 3)})
