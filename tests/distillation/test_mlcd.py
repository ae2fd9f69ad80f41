"""The loss on Gaussian data, where the teacher's whole path and the exact consistency function are closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.closeness import assert_close
from vdit_cli.diffusion.milestones import CLEAN, Milestones, signal_and_noise
from vdit_cli.diffusion.prediction import target, x0_from
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.diffusion.solvers import make_scheduler, set_steps
from vdit_cli.distillation.mlcd import Networks, guided, mlcd_losses, straight

MEAN, VARIANCE = 0.7, 0.25
SCHEDULES = {
    "eps": NoiseSchedule.from_config({}),
    "v": NoiseSchedule.from_config({}),
    "flow": NoiseSchedule.straight(1000),
}
SHAPE = (4, 2, 3, 3)


class Gaussian:
    """Data N(MEAN, VARIANCE) an element: E[x0 | x_t] is linear in x_t, and so is every step of its teacher.

    `bias` is added to the x0 that the student tells. All maps are x -> gain x + offset.
    """

    def __init__(self, kind: str, path: Milestones, schedule: NoiseSchedule | None = None) -> None:
        self.kind, self.path, self.schedule = kind, path, schedule or SCHEDULES[kind]
        self.to_milestone = self._composed()

    def shares(self, t: int) -> tuple[float, float]:
        """a and s as numbers."""
        a, s = signal_and_noise(self.schedule, torch.tensor([t]))
        return a.item(), s.item()

    def denoiser(self, t: int) -> tuple[float, float]:
        """E[x0 | x_t] = gain x_t + offset."""
        a, s = self.shares(t)
        gain = a * VARIANCE / (a * a * VARIANCE + s * s)
        return gain, MEAN * (1 - a * gain)

    def _composed(self) -> dict[int, tuple[float, float]]:
        """For every grid point, the teacher's steps down to its milestone, one after another, as one linear map."""
        grid, maps = self.path.grid, {}
        for j in range(1, len(grid)):
            t, u = grid[j], grid[j - 1]
            (a, s), (a_u, s_u), (gain, offset) = self.shares(t), self.shares(u), self.denoiser(t)
            keep = a_u - s_u / s * a
            first = (keep * gain + s_u / s, keep * offset)
            rest = (1.0, 0.0) if (j - 1) % self.path.points == 0 else maps[u]
            maps[t] = (rest[0] * first[0], rest[0] * first[1] + rest[1])
        return maps

    def consistency(self, t: int) -> tuple[float, float]:
        """The x0 whose one step from t to its milestone lands where the teacher's many steps do."""
        tau = self.path.times[self.path.grid[1:].index(t) // self.path.points]
        (a, s), (a_tau, s_tau), (gain, offset) = self.shares(t), self.shares(tau), self.to_milestone[t]
        span = a_tau - a * s_tau / s
        return (gain - s_tau / s) / span, offset / span

    def network(self, table, bias: float | Tensor = 0.0):
        """A network that tells x0 = gain x + offset + bias at each time, in this kind of prediction."""

        def predict(x: Tensor, t_B: Tensor) -> Tensor:
            maps = [table(t) if t in self.path.grid else (0.0, 0.0) for t in t_B.tolist()]
            gain, offset = (torch.tensor(each, dtype=x.dtype).view(-1, 1, 1, 1, 1) for each in zip(*maps, strict=True))
            a, s = signal_and_noise(self.schedule, t_B)
            x0 = gain * x + offset + bias
            return target(self.kind, x0, (x - a * x0) / s, a, s)

        return predict

    def terms(self, bias: float | Tensor = 0.0) -> dict[str, Tensor]:
        """The loss on every grid point once, the student `bias` away from the exact consistency function."""
        times = self.path.at(torch.arange(1, len(self.path.grid)))
        generator = torch.Generator().manual_seed(0)
        x0 = MEAN + VARIANCE**0.5 * torch.randn(len(times[0]), *SHAPE, generator=generator, dtype=torch.float64)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        student = self.network(self.consistency, bias)
        networks = Networks(student, student, self.network(self.denoiser))
        losses = mlcd_losses(networks, self.kind, self.schedule, x0, eps, times)
        return {name: each.mean() for name, each in losses.items()}


@pytest.mark.numerical
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("steps", "points"), [(4, 1), (4, 5), (2, 25), (20, 5)])
def test_the_exact_consistency_function_has_no_loss(kind, steps, points):
    exact = Gaussian(kind, Milestones(steps, points))
    right, biased = (
        {name: terms[name] for name in ("loss", "distance")} for terms in (exact.terms(), exact.terms(0.05))
    )
    assert_close(right, {"loss": 0, "distance": 0}, planted=biased)


@pytest.mark.numerical
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("segments", "steps"), [(4, 1), (4, 5), (4, 25), (20, 2)])
def test_steps_of_first_order_lead_where_as_many_points_do(kind, segments, steps):
    """The exact function of a grid of so many points tells the x0 of as many DDIM steps, on its way and past it."""
    exact, coarse = Gaussian(kind, Milestones(segments, steps)), Milestones(segments, 1)
    t_B, u_B, _ = coarse.at(torch.arange(1, segments + 1))
    x = torch.randn(segments, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (a, s), (a_u, s_u) = (signal_and_noise(exact.schedule, each) for each in (t_B, u_B))
    x0, end = straight(exact.network(exact.denoiser), kind, exact.schedule, x, t_B, u_B, steps, order=1)
    told = exact.network(exact.consistency)(x, t_B)
    other = exact.network(exact.consistency, 0.01)(x, t_B)
    expected, planted = (x0_from(kind, each, x, a, s) for each in (told, other))
    assert_close({"x0": x0}, {"x0": expected}, planted={"x0": planted})
    assert_close({"end": end}, {"end": a_u * expected + s_u / s * (x - a * expected)}, planted={"end": end + 1e-3})


@pytest.mark.numerical
@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("end", [499, CLEAN])
def test_steps_of_second_order_lead_where_dpm_solver_does(kind, end):
    """diffusers' DPM++ 2M over the same timesteps; its last step before clean data is of first order, as ours."""
    config = {"prediction_type": {"eps": "epsilon", "v": "v_prediction"}[kind]}
    times = (999, 874, 749, 624, 499) if end == 499 else (249, 199, 149, 99, 49)
    exact = Gaussian(kind, Milestones(1000, 1))
    solver = make_scheduler("dpm++2m", config, ",".join(map(str, times)))
    set_steps(solver, len(times))
    first = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, network = first, exact.network(exact.denoiser)
    for t in times[: 4 if end == 499 else 5]:
        x = solver.step(network(x, torch.full((2,), t)), t, x).prev_sample
    steps = 4 if end == 499 else 5
    t_B, u_B = torch.full((2,), times[0]), torch.full((2,), end)
    (x0, found), (_, plain) = (
        straight(network, kind, exact.schedule, first, t_B, u_B, steps, order=order) for order in (2, 1)
    )
    assert_close({"end": found}, {"end": x}, rtol=1e-5, atol=1e-5, planted={"end": plain})
    (a, s), (a_u, s_u) = (signal_and_noise(exact.schedule, each) for each in (t_B, u_B))
    assert_close({"one step": a_u * x0 + s_u / s * (first - a * x0)}, {"one step": found}, planted={"one step": plain})


@pytest.mark.numerical
def test_substeps_of_the_loss_are_of_second_order():
    """A student that tells where they lead has no loss, one that tells where DDIM's lead has; at pure noise too."""
    for kind in SCHEDULES:
        exact, path = Gaussian(kind, Milestones(1000, 1)), Milestones(4, 1)
        times, network = path.at(torch.arange(1, 5)), exact.network(exact.denoiser)
        x0 = torch.full((4, *SHAPE), MEAN, dtype=torch.float64)
        losses = {}
        for order in (2, 1):

            def student(x: Tensor, t_B: Tensor, order=order, exact=exact, network=network, times=times) -> Tensor:
                (a, s), u_B = signal_and_noise(exact.schedule, t_B), times[1]
                told, _ = straight(network, exact.kind, exact.schedule, x, t_B, u_B, 5, order=order)
                return target(exact.kind, told, (x - a * told) / s, a, s)

            networks = Networks(student, None, network)
            losses[order] = mlcd_losses(networks, kind, exact.schedule, x0, x0, times, substeps=5)["loss"]
        assert_close({"loss": losses[2]}, {"loss": torch.zeros(4, dtype=torch.float64)}, planted={"loss": losses[1]})


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_gradient_leads_back_to_it(kind):
    """Whatever side the student is on, the slope points away from the exact function, and the loss falls along it."""
    exact = Gaussian(kind, Milestones(2, 5))
    for side in (0.1, -0.1):
        bias = torch.tensor(side, dtype=torch.float64, requires_grad=True)
        terms = exact.terms(bias)
        (slope,) = torch.autograd.grad(terms["loss"], bias)
        assert terms["loss"] > 0 and torch.sign(slope) == torch.sign(bias)
        assert exact.terms(bias.item() - 0.01 * slope.item())["loss"] < terms["loss"]


@pytest.mark.numerical
def test_students_learn_the_exact_function_from_nothing():
    """A free gain and offset a grid point, moved by the loss alone, end at the closed form."""
    exact = Gaussian("v", Milestones(2, 2))
    points = exact.path.grid[1:]
    free = torch.zeros(len(points), 2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([free], lr=0.02)
    generator = torch.Generator().manual_seed(0)

    def student(x: Tensor, t_B: Tensor) -> Tensor:
        rows = free[[points.index(t) if t in points else 0 for t in t_B.tolist()]]
        a, s = signal_and_noise(exact.schedule, t_B)
        x0 = rows[:, 0].view(-1, 1, 1, 1, 1) * x + rows[:, 1].view(-1, 1, 1, 1, 1)
        return target("v", x0, (x - a * x0) / s, a, s)

    networks = Networks(student, student, exact.network(exact.denoiser))
    for iteration in range(800):
        times = exact.path.at(torch.randint(1, 5, (64,), generator=generator))
        x0 = MEAN + VARIANCE**0.5 * torch.randn(64, *SHAPE, generator=generator, dtype=torch.float64)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
        mlcd_losses(networks, "v", exact.schedule, x0, eps, times)["loss"].mean().backward()
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - iteration / 800)
        optimiser.step()
        optimiser.zero_grad()
    expected = torch.tensor([exact.consistency(t) for t in points], dtype=torch.float64)
    assert_close(free, expected, atol=0.02)


def test_only_the_student_has_gradients():
    exact = Gaussian("v", Milestones(2, 2))
    weights = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in ("target", "teacher")}
    networks = Networks(
        exact.network(exact.consistency, 0.1),
        exact.network(exact.consistency, weights["target"]),
        exact.network(exact.denoiser, weights["teacher"]),
    )
    x0 = torch.ones(2, *SHAPE, dtype=torch.float64)
    times = exact.path.at(torch.tensor([1, 4]))
    assert not mlcd_losses(networks, "v", exact.schedule, x0, x0, times)["loss"].mean().requires_grad


@pytest.mark.numerical
@pytest.mark.parametrize("bias", [0.0, 0.05])
def test_the_three_predictions_have_one_distance(bias):
    """eps and v on one schedule; flow on the same path scaled by 1 / (a + s), which has the same SNR at each time.

    v and flow weigh it alike too.
    """
    path, ddpm = Milestones(4, 5), SCHEDULES["v"]
    total = ddpm.alphas + ddpm.sigmas
    straight = NoiseSchedule(ddpm.alphas / total, ddpm.sigmas / total)
    eps, v = (Gaussian(kind, path).terms(bias) for kind in ("eps", "v"))
    flow, other = Gaussian("flow", path, straight).terms(bias), Gaussian("v", path).terms(bias + 0.05)
    told = [eps["distance"], flow["distance"], flow["loss"]]
    assert_close(told, [v["distance"], v["distance"], v["loss"]], planted=[other["distance"]] * 2 + [other["loss"]])
    assert bias == 0 or v["loss"] > 0.001


@pytest.mark.numerical
def test_the_loss_pulls_as_hard_at_an_eps_network_as_at_a_v_network():
    """The gradient at every output and every grid point; by x0 alone it would be 157 times as hard at t = 999."""
    path, pulls = Milestones(4, 5), {}
    for kind in ("eps", "v"):
        exact, held = Gaussian(kind, path), []

        def student(x: Tensor, t_B: Tensor, exact=exact, held=held) -> Tensor:
            held.append(exact.network(exact.consistency, 0.05)(x, t_B).requires_grad_())
            return held[-1]

        generator = torch.Generator().manual_seed(0)
        times = path.at(torch.arange(1, 21))
        x0, eps = (torch.randn(20, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
        networks = Networks(student, exact.network(exact.consistency), exact.network(exact.denoiser))
        mlcd_losses(networks, kind, exact.schedule, x0, eps, times)["loss"].mean().backward()
        pulls[kind] = held[-1].grad
    assert_close(pulls["eps"], pulls["v"], rtol=1e-6)


@pytest.mark.numerical
def test_the_weight_is_clipped_at_the_cap():
    """One point at low noise, where SNR + 1 is far above any cap: the loss is proportional to the cap."""
    exact = Gaussian("v", Milestones(10, 1))
    times = exact.path.at(torch.tensor([1]))
    x0 = torch.full((1, *SHAPE), MEAN, dtype=torch.float64)
    networks = Networks(
        *(
            exact.network(table, bias)
            for table, bias in ((exact.denoiser, 0.2), (exact.denoiser, 0.0), (exact.denoiser, 0.0))
        )
    )
    one, five = (
        mlcd_losses(networks, "v", exact.schedule, x0, x0, times, cap=cap)["loss"].mean() for cap in (1.0, 5.0)
    )
    assert times[2].item() == CLEAN
    assert_close(five, 5 * one.item())
    assert_close(one, (0.2**2 + 1e-6) ** 0.5 - 1e-3, told="pseudo-Huber of a bias of .2")


def test_guidance_goes_beyond_the_caption():
    """y(null) + w (y(c) - y(null)) of rows that come in one call."""

    def both(x: Tensor, t_B: Tensor) -> Tensor:
        assert len(x) == len(t_B) == 4
        return torch.cat([torch.full_like(x[:2], 3.0), torch.full_like(x[2:], 1.0)])

    made = guided(both, 4.0)(torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.long))
    assert torch.equal(made, torch.full((2, *SHAPE), 9.0))
