"""Distilled from a teacher whose whole flow is a closed form, a student lands where that flow leads.

Data N(0, s^2) an element, another s for each text: the teacher's v is linear in x. With y = x / alpha and
r = sigma / alpha the probability flow is dy/dr = y r / (s^2 + r^2), so y goes with (s^2 + r^2)^(1/2), and under
guidance w with (s_c^2 + r^2)^(w/2) (s_null^2 + r^2)^((1-w)/2). Source of the flow: arXiv 2206.00364, Eq. 4.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.distillation.recording import SHAPE, SIZE, WEIGHTS, Recorder, distill_recorded, text_of, write_recorded
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.student_networks import Pair
from vdit_cli.sampling.sample import SampleSpec, sample
from vdit_cli.timing import Silent

DEVIATIONS = (1.0, 1.3)
"""s of the null text and of the caption."""
GUIDANCE = 2.0
SCHEDULE = NoiseSchedule.from_config({})


def teacher_table() -> Tensor:
    """v = a eps - s E[x0 | x_t] of each text and timestep, as a factor on x_t."""
    a, s = SCHEDULE.alphas, SCHEDULE.sigmas
    variance = torch.tensor(DEVIATIONS, dtype=torch.float64)[:, None] ** 2
    gain = a * variance / (a * a * variance + s * s)
    return ((a - gain) / s).float()


def exact_flow(text: int, w: float, milestones: tuple[int, ...]) -> list[float]:
    """x at each milestone below the first, and at clean data, over x at the first."""
    a, s = ([*table[list(milestones)].tolist(), end] for table, end in ((SCHEDULE.alphas, 1.0), (SCHEDULE.sigmas, 0.0)))
    null, own = DEVIATIONS[0], DEVIATIONS[text]
    squares = [(b / c) ** 2 for c, b in zip(a, s, strict=True)]
    grown = [c * (own**2 + r) ** (w / 2) * (null**2 + r) ** ((1 - w) / 2) for c, r in zip(a, squares, strict=True)]
    return [each / grown[0] for each in grown[1:]]


def landed(table: Tensor, text: int) -> list[float]:
    """Where the sampler's four steps with this table lead, over where they begin."""
    student = Recorder("student", table, [])
    spec = SampleSpec(**SIZE, steps=4, guidance=1.0, scheduler="milestones")
    end = sample(student, spec, text_of([text]), None, [torch.Generator().manual_seed(0)], Silent())
    visited = [*(call.x for call in student.calls), end]
    return [(each / visited[0]).double().median().item() for each in visited[1:]]


def farthest(table: Tensor, text: int, w: float) -> float:
    """The largest relative distance of a milestone from the exact flow."""
    exact = exact_flow(text, w, (999, 749, 499, 249))
    return max(abs(mine / wanted - 1) for mine, wanted in zip(landed(table, text), exact, strict=True))


@pytest.mark.parametrize("guidance", ["distilled", "kept"])
def test_a_students_milestones_land_on_the_teachers_flow(tmp_path: Path, guidance: str):
    """Within 5 %, by the real stage, from a start that is wrong by far; of a kept guidance both branches do."""
    wrong = torch.full((2, SCHEDULE.timesteps), 0.2)
    pair = Pair(Recorder("teacher", teacher_table(), []), Recorder("student", wrong, []))
    folder = distill_recorded(
        pair,
        write_recorded(tmp_path / "data", torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))),
        tmp_path / "run",
        guidance=guidance,
        teacher_guidance=GUIDANCE,
        null_share=0.4,
        iterations=400,
        batch_size=64,
        learning_rate=0.05,
        teacher_points=(2, 10),
        teacher_shares=(0.3, 0.7),
        huber_c=1.0,
        log_every=100,
    )
    table = load_file(folder / WEIGHTS)["table"]
    for text, w in ((1, GUIDANCE),) if guidance == "distilled" else ((0, 1.0), (1, 1.0)):
        assert farthest(table, text, w) < 0.05 < 0.5 < farthest(wrong, text, w), text
