"""What each network of a distillation is given: by a backbone that writes down every call, of the real stage.

All that is expected is computed here from the calls before, in float64.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.closeness import assert_close
from tests.distillation.recording import SHAPE, WEIGHTS, Call, Recorder, distill_recorded, write_recorded
from tests.distillation.small_mlcd import StopsAt
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation import watch
from vdit_cli.distillation.student_networks import Pair
from vdit_cli.errors import EvditError, Interrupted
from vdit_cli.timing import Silent

CLIPS, BATCH, ITERATIONS, WARMUP, RATE, KEEP, CAP, GUIDANCE = 4, 4, 4, 10, 0.02, 0.6, 2.0, 3.0
SCHEDULE = NoiseSchedule.from_config({})
OPTIONS = {
    "iterations": ITERATIONS,
    "batch_size": BATCH,
    "learning_rate": RATE,
    "warmup": WARMUP,
    "average_keep": KEEP,
    "weight_cap": CAP,
    "huber_c": 0.5,
    "teacher_points": (2, 5),
    "teacher_guidance": GUIDANCE,
    "checkpoint_every": 2,
}


class Iteration(NamedTuple):
    """The three calls of one iteration."""

    teacher: Call
    target: Call
    student: Call


class Lesson(NamedTuple):
    """A distillation that was written down."""

    run: Path
    calls: list[Call]
    iterations: list[Iteration]
    teacher: Recorder
    metrics: list[dict]


def clip_latents(number: int) -> float:
    """All latents of the clip with this text: so far apart that no noise makes one look like another."""
    return 2000.0 * number


def pair_of(calls: list[Call]) -> Pair:
    """A teacher whose answer hangs on text and time, and a student that knows nothing."""
    random = torch.Generator().manual_seed(0)
    table = torch.rand(CLIPS + 1, SCHEDULE.timesteps, generator=random) - 0.5
    return Pair(Recorder("teacher", table, calls), Recorder("student", torch.zeros_like(table), calls))


def prepared(folder: Path) -> Path:
    """The data: clips of one number each."""
    latents = torch.stack([torch.full(SHAPE, clip_latents(number)) for number in range(1, CLIPS + 1)])
    return write_recorded(folder, latents)


def lesson(folder: Path, progress: Silent | None = None, **changes) -> Lesson:
    """A distillation in `folder/run`, or what is left of it, its calls three by three where all are of the training."""
    calls: list[Call] = []
    pair = pair_of(calls)
    data = folder / "data" if (folder / "data").is_dir() else prepared(folder / "data")
    distill_recorded(pair, data, folder / "run", progress, **{**OPTIONS, **changes})
    threes = [Iteration(*calls[i : i + 3]) for i in range(0, len(calls) - 2, 3)]
    lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return Lesson(folder / "run", calls, threes, pair.teacher, [json.loads(line) for line in lines])


def shares(t: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Alpha and sigma of times, (B, 1, 1, 1, 1); below 0 is clean data."""
    a = [SCHEDULE.alphas[each].item() if each >= 0 else 1.0 for each in t]
    s = [SCHEDULE.sigmas[each].item() if each >= 0 else 0.0 for each in t]
    return tuple(torch.tensor(each, dtype=torch.float64).view(-1, 1, 1, 1, 1) for each in (a, s))


def times_of(t: tuple[int, ...], points: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """u and tau of the times t with so many teacher points in each of four segments, which divide 1000."""
    apart = 1000 // (4 * points)
    assert all((each + 1) % apart == 0 and each > 0 for each in t), f"{t} are not on a grid of {4 * points} points"
    below = tuple(each - apart for each in t)
    return below, tuple((each + 1) // 250 * 250 - 1 for each in below)


def noise_of_captions(call: Call) -> Tensor:
    """What is left of noisy latents, those with an empty text aside, without the signal of their texts' clips."""
    a, s = shares(call.t)
    signal = torch.tensor([clip_latents(each) for each in call.texts], dtype=torch.float64).view(-1, 1, 1, 1, 1)
    return ((call.x.double() - a * signal) / s)[torch.tensor(call.texts) > 0]


def told_x0(call: Call, table: Tensor, texts: tuple[int, ...]) -> Tensor:
    """The clean data that a table tells of a call's latents under other texts."""
    a, s = shares(call.t)
    factor = table[list(texts), list(call.t)].double().view(-1, 1, 1, 1, 1)
    return (a - s * factor) * call.x.double()


def losses_of(target: Call, student: Call, below: tuple[int, ...], tau: tuple[int, ...], cap: float = CAP) -> Tensor:
    """The loss of each sample (B,), from where the target leads, as it was once derived."""
    (a, s), (a_u, s_u), (a_tau, s_tau) = (shares(each) for each in (student.t, below, tau))
    is_there = torch.tensor([each == last for each, last in zip(below, tau, strict=True)]).view(-1, 1, 1, 1, 1)
    x0 = told_x0(target, target.table, target.texts)
    z = a_tau * x0 + s_tau / s_u.clamp(min=1e-9) * (target.x - a_u * x0)
    z = torch.where(is_there, target.x.double(), z)
    wanted = (z - s_tau / s * student.x) / (a_tau - a * s_tau / s)
    difference = told_x0(student, student.table, student.texts) - wanted
    c = OPTIONS["huber_c"]
    return (((a / s) ** 2 + 1).clamp(max=cap) * ((difference**2 + c * c).sqrt() - c)).flatten(1).mean(1)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """Guidance distilled, an average for a target."""
    return lesson(tmp_path_factory.mktemp("distilled"), guidance="distilled", target="average")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    """Guidance kept, half the captions emptied, an average for a target."""
    return lesson(tmp_path_factory.mktemp("kept"), guidance="kept", null_share=0.5, target="average")


@pytest.fixture(params=["distilled", "kept"])
def told(request: pytest.FixtureRequest) -> tuple[str, Lesson]:
    """Both of them."""
    return request.param, request.getfixturevalue(request.param)


def test_texts_go_where_they_belong(told: tuple[str, Lesson]):
    """Distilled guidance asks the teacher for caption and null text; a kept one asks all three for the same texts."""
    kind, made = told
    assert len(made.calls) == 3 * ITERATIONS and [call.who for call in made.iterations[0]] == [
        "teacher",
        *["student"] * 2,
    ]
    for teacher, target, student in made.iterations:
        assert target.texts == student.texts and len(student.texts) == BATCH
        copies = 2 if kind == "distilled" else 1
        assert teacher.texts == student.texts + (0,) * BATCH * (copies - 1)
        assert teacher.t == student.t * copies and torch.equal(teacher.x, student.x.repeat(copies, 1, 1, 1, 1))
    texts = [text for each in made.iterations for text in each.student.texts]
    if kind == "distilled":
        assert sorted(texts) == sorted([1, 2, 3, 4] * ITERATIONS), "each clip once an epoch"
    else:
        assert 0.2 * len(texts) < texts.count(0) < 0.8 * len(texts), "half the captions are emptied"


def test_each_sample_has_its_own_clip_and_noise(told: tuple[str, Lesson]):
    """Without its clip's signal nothing but a normal noise is left, and no two samples have the same."""
    noise = torch.cat([noise_of_captions(each.student).flatten(1) for each in told[1].iterations])
    assert noise.abs().max() < 6 and 0.7 < noise.std() < 1.3
    assert len(noise) > BATCH and torch.cdist(noise, noise).fill_diagonal_(9).min() > 1


@pytest.mark.numerical
def test_the_target_is_asked_where_the_guided_teacher_leads(told: tuple[str, Lesson]):
    """x_u is the teacher's step, guided once where guidance is distilled and not at all where it is kept."""
    kind, made = told
    assert 999 in {t for each in made.iterations for t in each.student.t}, "pure noise is where sampling begins"
    w, table = (GUIDANCE if kind == "distilled" else 1.0), made.teacher.stored["table"]
    for number, (_, target, student) in enumerate(made.iterations):
        below, _ = times_of(student.t, (2, 2, 5, 5)[number])
        assert target.t == tuple(max(each, 0) for each in below)
        (a, s), (a_u, s_u) = shares(student.t), shares(below)
        own, null = told_x0(student, table, student.texts), told_x0(student, table, (0,) * BATCH)
        leads = [a_u * x0 + s_u / s * (student.x - a * x0) for x0 in (null + w * (own - null), null)]
        assert_close(target.x, leads[0], rtol=1e-3, atol=1e-2, planted=leads[1] + 1)


@pytest.mark.numerical
@pytest.mark.parametrize("target", ["average", "student"])
def test_with_one_point_the_teacher_alone_is_asked(tmp_path: Path, target: str):
    """Its point is the segment's end: nobody stands in for what comes after, and the loss is as it was."""
    made = lesson(tmp_path, teacher_points=(1, 2), teacher_shares=(0.5, 0.5), guidance="kept", target=target)
    first, rest = made.calls[:4], [call.who for call in made.calls[4:]]
    assert [call.who for call in first] == ["teacher", "student"] * 2 and rest == ["teacher", "student", "student"] * 2
    for (teacher, student), told in zip((first[:2], first[2:]), made.metrics, strict=False):
        below, tau = times_of(student.t, 1)
        assert below == tau
        (a, s), (a_u, s_u) = shares(student.t), shares(below)
        x0 = told_x0(teacher, teacher.table, teacher.texts)
        leads = student._replace(x=a_u * x0 + s_u / s * (student.x - a * x0))
        assert_close(told["loss"], losses_of(leads, student, below, tau).mean().item(), rtol=1e-3)


@pytest.mark.numerical
def test_whose_parameters_each_call_has(told: tuple[str, Lesson]):
    """The teacher's never change; the student's do; the target's are their moving average; only the student learns."""
    made = told[1]
    student = [each.student.table for each in made.iterations]
    following = student[0].double()
    for number, each in enumerate(made.iterations):
        if number:
            keep = min(KEEP, number / (9 + number))
            following = keep * following + (1 - keep) * student[number].double()
            assert not torch.equal(student[number], student[number - 1])
            assert_close(each.target.table, following, atol=1e-6, planted=student[number - 1].double())
        assert torch.equal(each.teacher.table, made.teacher.stored["table"])
        assert [call.has_grad for call in each] == [False, False, True]
        assert [call.is_replaced for call in each] == [False, True, False]
    assert not made.teacher.net.table.requires_grad


@pytest.mark.numerical
def test_the_average_is_kept_and_the_rate_rises(told: tuple[str, Lesson]):
    """What is written, and the last checkpoint's average, is the average of all steps; Adam's first one is the rate."""
    made = told[1]
    last = made.run / "checkpoints" / f"step-{ITERATIONS:06d}"
    raw = load_file(last / "model.safetensors")["student/table"]
    steps = [*(each.student.table for each in made.iterations[1:]), raw]
    average = made.iterations[0].student.table.double()
    for number, table in enumerate(steps, start=1):
        keep = min(KEEP, number / (9 + number))
        average = keep * average + (1 - keep) * table.double()
    for found in (
        load_file(made.run / "student" / WEIGHTS)["table"],
        load_file(last / "average.safetensors")["student/table"],
    ):
        assert_close(found, average, atol=1e-6, planted=raw.double())
    assert_close(steps[0].abs().max().item(), RATE / WARMUP, rtol=1e-3)
    guidance = Sampler.read(made.run / "student").guidance
    assert guidance == (1.0 if told[0] == "distilled" else GUIDANCE)


@pytest.mark.numerical
def test_the_loss_is_that_of_the_calls(told: tuple[str, Lesson]):
    """Weighed up to the cap, the pseudo-Huber distance to where the target leads, back at t; as it was once derived."""
    made, is_capped = told[1], False
    for number, (_, target, student) in enumerate(made.iterations):
        below, tau = times_of(student.t, (2, 2, 5, 5)[number])
        losses = [losses_of(target, student, below, tau, cap).mean().item() for cap in (CAP, 5)]
        assert_close(made.metrics[number]["loss"], losses[0], rtol=1e-3, planted=2 * losses[0])
        is_capped |= losses[1] > 1.05 * losses[0]
    assert is_capped, "another cap is another loss"


@pytest.mark.numerical
def test_a_target_may_be_the_student_itself(tmp_path: Path):
    """Then it has the student's own parameters, and an unguided teacher is asked for no null text."""
    for _, target, student in lesson(tmp_path, teacher_guidance=1.0).iterations:
        assert torch.equal(target.table, student.table) and not target.is_replaced
        assert 0 not in student.texts


@pytest.mark.numerical
def test_gradients_are_clipped(tmp_path: Path):
    """Adam's first moment is a tenth of the first gradient, which is as long as the limit and no longer."""
    made = lesson(tmp_path, clip=1e-3, iterations=1)
    moment = load_file(made.run / "checkpoints" / "step-000001" / "optimiser-0.safetensors")["0.exp_avg"]
    assert made.metrics[0]["gradient_norm"] > 1
    assert_close(moment.norm().item(), 1e-4, rtol=1e-3)


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_masks_and_precision(tmp_path: Path, precision: str, dtype: torch.dtype):
    """The student alone wears the masks; all of them compute in the precision."""
    made = lesson(tmp_path, precision=precision, masks="1:1", target="average", iterations=1)
    assert {(call.who, call.masks) for call in made.calls} == {("teacher", None), ("student", "1:1")}
    assert {call.dtype for call in made.calls} == {dtype}


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.numerical
def test_parts_of_a_batch_are_the_batch(tmp_path: Path, distilled: Lesson, parts: int):
    """The same samples, the same first loss and the same first step."""
    made = lesson(tmp_path, accumulation=parts, target="average")
    split, whole = [call for call in made.calls if call.has_grad], distilled.iterations
    for number in range(ITERATIONS):
        of_one = split[number * parts : (number + 1) * parts]
        assert torch.equal(torch.cat([call.x for call in of_one]), whole[number].student.x)
        assert sum((call.texts for call in of_one), ()) == whole[number].student.texts
    names = [name for name in distilled.metrics[0] if name.startswith("loss")]
    split_first, whole_first = (torch.tensor([each.metrics[0][name] for name in names]) for each in (made, distilled))
    assert names == ["loss", *(f"loss_segment_{m}" for m in range(4))]
    assert_close(split_first, whole_first, rtol=1e-3)


def test_going_on_draws_what_would_have_been_drawn(tmp_path: Path, distilled: Lesson):
    """The rest of a stopped training has the calls of an undisturbed one, number for number."""
    with pytest.raises(Interrupted):
        lesson(tmp_path, StopsAt(3), target="average", guidance="distilled")
    rest = lesson(tmp_path, target="average", guidance="distilled")
    assert len(rest.iterations) == 1
    for found, expected in zip(rest.iterations[0], distilled.iterations[3], strict=True):
        assert found.t == expected.t and found.texts == expected.texts
        assert torch.equal(found.x, expected.x) and torch.equal(found.table, expected.table)


def test_held_out_clips_are_only_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No gradient ever comes from the last clip."""
    monkeypatch.setattr(f"{__name__}.CLIPS", 8)
    made = lesson(tmp_path, held_out=1)
    learned = {text for call in made.calls if call.has_grad for text in call.texts}
    measured = {text for call in made.calls if not call.has_grad for text in call.texts}
    assert learned == set(range(1, 8)) and measured == set(range(9))


def test_a_look_at_what_is_done_again_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A collapsed student's look is not judged again: the one of its second attempt is."""
    with monkeypatch.context() as patch:
        patch.setattr(watch, "collapse_of", lambda now, first, *rest: "planted" if now != first else None)
        with pytest.raises(EvditError, match="collapsed at iteration 2: planted"):
            lesson(tmp_path, previews=1, collapse_factor=1e9)
    looks = tmp_path / "run" / "previews" / "looks.jsonl"
    told = [json.loads(line) for line in looks.read_text(encoding="utf-8").splitlines()]
    assert [each["iteration"] for each in told] == [0, 2]
    told[1]["gap"] = -7.0
    looks.write_text("".join(json.dumps(each) + "\n" for each in told), encoding="utf-8")
    lesson(tmp_path, previews=1, collapse_factor=1e9)
    told = [json.loads(line) for line in looks.read_text(encoding="utf-8").splitlines()]
    assert [each["iteration"] for each in told] == [0, 2, 4] and all(each["gap"] > 0 for each in told)
