"""Segments drawn by their shares, losses of each that no small batch distorts, and lists that don't fit refused."""

from __future__ import annotations

import shlex
from itertools import product

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.distillation.mlcd_job import step_counts
from vdit_cli.distillation.mlcd_segments import (
    check_segments,
    drawn_segments,
    held_segments,
    means_by_segment,
    segments_of,
    shares_among,
    shares_of,
)
from vdit_cli.distillation.samples import Samples, parts_of
from vdit_cli.errors import USAGE, EvditError, quoted
from vdit_cli.recipe import load
from vdit_cli.recipe_training import DistillMlcdOptions

CPU = torch.device("cpu")


def asked(**values: str) -> DistillMlcdOptions:
    """The options with these settings of a command line."""
    return load(None, [f"distill_mlcd.{key}={value}" for key, value in values.items()], {}).distill_mlcd


def test_lists_are_for_the_student_of_as_many_steps():
    """Of --steps 8,4 four numbers are the second student's; the first one's segments are even and drawn alike."""
    options = asked(steps="8,4", milestones="[999,749,499,149]", segment_shares="[1,1,1,2]")
    check_segments(options, (8, 4), 1000)
    assert segments_of(options, 4, 1000, 5).times == (-1, 149, 499, 749, 999)
    assert segments_of(options, 8, 1000).sampled == (999, 874, 749, 624, 499, 374, 249, 124)
    assert shares_of(options, 4) == (0.2, 0.2, 0.2, 0.4) and shares_of(options, 8) == (0.125,) * 8


@pytest.mark.numerical
def test_segments_are_drawn_by_their_shares_in_any_parts():
    shares = (0.1, 0.2, 0.3, 0.4)
    whole = drawn_segments(Samples(3, 7, 0, 16000, 16000, CPU), shares)
    assert_close(torch.tensor(shares_among(whole, 4)), torch.tensor(shares), atol=0.014, planted=torch.full((4,), 0.25))
    parts = [drawn_segments(part, shares) for part in parts_of(3, 7, 16000, CPU, 1, 2, 3)]
    assert torch.equal(torch.cat(parts), whole[8000:])
    assert not torch.equal(drawn_segments(Samples(3, 8, 0, 16000, 16000, CPU), shares), whole)


@pytest.mark.parametrize(
    ("held", "counts"), [(8, [2, 2, 2, 2]), (10, [3, 2, 3, 2]), (3, [1, 1, 1, 0]), (1, [1, 0, 0, 0])]
)
def test_held_out_clips_are_spread_over_the_segments(held: int, counts: list[int]):
    segments = held_segments(held, 4)
    assert segments.bincount(minlength=4).tolist() == counts
    assert shares_among(segments, 4) == tuple(count / held for count in counts)


@pytest.mark.numerical
def test_what_falls_into_a_segment_counts_against_its_share():
    """Written out: two of four samples where one is expected, none where one is; a share of 0 has no term."""
    losses = {"loss": torch.tensor([1.0, 2.0, 3.0, 4.0]), "distance": torch.tensor([5.0, 6.0, 7.0, 10.0])}
    segments = torch.tensor([0, 1, 1, 3])
    terms = means_by_segment(losses, segments, (0.25,) * 4)
    names = [f"loss_segment_{m}" for m in range(4)]
    assert list(terms) == ["loss", "distance", *names]
    assert_close([terms[name].item() for name in ("loss", "distance", *names)], [2.5, 7.0, 1.0, 5.0, 0.0, 4.0])
    uneven = means_by_segment(losses, segments, (0.5, 0.25, 0.0, 0.25))
    assert_close([uneven[f"loss_segment_{m}"].item() for m in (0, 1, 3)], [0.5, 5.0, 4.0])
    assert "loss_segment_2" not in uneven


@pytest.mark.numerical
def test_the_mean_over_small_batches_is_a_segments_own_loss():
    """Every batch of three with its probability, most of them without one of the segments: each segment's own loss."""
    shares, own = (0.2, 0.3, 0.5), torch.tensor([7.0, 11.0, 2.0], dtype=torch.float64)
    expected = dict.fromkeys((f"loss_segment_{m}" for m in range(3)), 0.0)
    for batch in product(range(3), repeat=3):
        chance = torch.tensor([shares[m] for m in batch], dtype=torch.float64).prod()
        terms = means_by_segment({"loss": own[list(batch)]}, torch.tensor(batch), shares)
        expected = {name: value + chance * terms[name] for name, value in expected.items()}
    assert_close(torch.stack(list(expected.values())), own, planted=own.flip(0))


def test_the_losses_of_segments_have_no_gradients():
    loss = torch.ones(2, requires_grad=True)
    terms = means_by_segment({"loss": loss}, torch.tensor([0, 1]), (0.5, 0.5))
    assert [name for name, term in terms.items() if term.requires_grad] == ["loss"]


@pytest.mark.parametrize(
    ("key", "numbers", "more", "told", "steps"),
    [
        ("segment_shares", "[1,2]", {}, "are 2 numbers: a student of --steps 4 has 4 of them", ["--steps 2"]),
        ("milestones", "[999]", {"steps": "8,4"}, "is 1 number: students of --steps 8,4 have 8 or 4", ["--steps 1"]),
        ("segment_shares", "[1,1,0,1]", {}, "must each be above 0", ["segment_shares=[1,1,1,1]"]),
        ("segment_shares", "[1,1,-1,1]", {}, "must each be above 0", ["segment_shares=[1,1,1,1]"]),
        ("milestones", "[249,499,749,999]", {}, "must fall from at most 999", ["milestones=[999,749,499,249]"]),
        ("milestones", "[999,499,499,249]", {}, "must fall from at most 999", ["milestones=[999,749,499,249]"]),
        ("milestones", "[1000,749,499,249]", {}, "must fall from at most 999", ["milestones=[999,749,499,249]"]),
        ("milestones", "[999,749,499,-1]", {}, "to at least 0", ["milestones=[999,749,499,249]"]),
        (
            "milestones",
            "[999,749,499,9]",
            {},
            "leave 10 timesteps to a segment of 25 teacher points",
            ["milestones=[999,749,499,249]", "teacher_points=[2,5,10]"],
        ),
        (
            "milestones",
            "[999,749,499,49]",
            {"teacher_points": "[10]", "teacher_substeps": "6"},
            "leave 50 timesteps to a segment of 10 teacher points with 6 substeps each",
            ["teacher_substeps=5"],
        ),
        (
            "milestones",
            "[3,2,1,0]",
            {"teacher_shares": "[1,1,1]"},
            "leave 1 timestep to a segment",
            ["milestones=[999,749,499,249]", "teacher_points=[1,1,1]"],
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused(key: str, numbers: str, more: dict[str, str], told: str, steps: list[str]):
    """By the flag that was typed; each step offered fits, alone."""
    given = {"steps": "4", key: numbers, **more}
    options = asked(**given)
    with pytest.raises(EvditError) as caught:
        check_segments(options, step_counts(options), 1000)
    assert told in str(caught.value) and caught.value.exit_code == USAGE
    assert caught.value.where == f'--set "distill_mlcd.{key}={numbers}"'
    sets = [step if step.startswith("--") else f"--set {quoted('distill_mlcd.' + step)}" for step in steps]
    flags = [*sets, f'--set "distill_mlcd.{key}=[]"']
    assert list(caught.value.next_steps) == flags
    for flag, value in map(shlex.split, flags):
        changed = value.removeprefix("distill_mlcd.").split("=") if flag == "--set" else ["steps", value]
        fits = asked(**{**given, changed[0]: changed[1]})
        check_segments(fits, step_counts(fits), 1000)
