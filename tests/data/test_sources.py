"""What a source gives: training scenes of the shapes world by number, and what can't be one is refused."""

from __future__ import annotations

import pytest
import torch

from vdit_cli.data.shapes_prompts import is_held_out, parse_prompt
from vdit_cli.data.shapes_world import draw_scene, render
from vdit_cli.data.sources import SOURCES, ClipSize, Part, check_source
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.recipe import PrepareDataOptions

SIZE = ClipSize(9, 32, 32, 8)


def part(numbers: range, **options: object) -> Part:
    """Clips of the shapes world at a small size."""
    asked = PrepareDataOptions(source="shapes", **options)  # type: ignore[arg-type]
    return SOURCES["shapes"](asked, SIZE, torch.device("cpu")).part(numbers)


def test_scenes_are_of_training_combinations_and_a_quarter_has_two_objects():
    """Read back from the captions alone, which are all that training sees."""
    captions = part(range(4000), left_out=0.0).captions
    readings = [parse_prompt(caption) for caption in captions]
    assert all(reading.is_exact for reading in readings)
    shown = [(each.colour, each.shape, each.motion) for reading in readings for each in reading.objects]
    assert not any(is_held_out(*triple) for triple in shown)
    assert len(set(shown)) == 324
    # Of 4000 draws at .25 the standard deviation is 27: six of them on either side.
    assert 840 < sum(len(reading.objects) == 2 for reading in readings) < 1160


@pytest.mark.parametrize(("share", "objects"), [(0.0, 1), (1.0, 2)])
def test_the_share_of_two_objects_is_a_knob(share: float, objects: int):
    captions = part(range(20), two_objects=share).captions
    assert {len(parse_prompt(caption).objects) for caption in captions} == {objects}


def test_captions_leave_parts_out_where_asked():
    """At .15 by default, none at 0; the pixels stay the same."""
    whole, asked, partial = part(range(400), left_out=0.0), part(range(400)), part(range(400), left_out=0.5)
    exact = [sum(parse_prompt(caption).is_exact for caption in each.captions) for each in (whole, asked, partial)]
    # Three captions in four have three parts, others five: .85^3 and .85^5 are whole, 229 of 400; six deviations.
    assert exact[0] == 400 and 169 < exact[1] < 289 and exact[2] < 100
    assert torch.equal(partial.pixels(0, 2), whole.pixels(0, 2)) and torch.equal(asked.pixels(0, 2), whole.pixels(0, 2))


def test_a_clip_is_its_number_s_whatever_is_asked_for_with_it():
    """Name, caption and pixels of clip 5 of seed 3, alone or among others; another seed has others."""
    alone, among = part(range(5, 6), seed=3), part(range(2, 8), seed=3)
    assert alone.names == ("shapes 3 5",) and (alone.names[0], alone.captions[0]) == (among.names[3], among.captions[3])
    pixels = alone.pixels(0, 1)
    assert torch.equal(pixels, among.pixels(3, 4))
    assert torch.equal(pixels, render([draw_scene(3, 5, "train", 0.25)], frames=9, size=32) * 2 - 1)
    assert pixels.shape == (1, 3, 9, 32, 32) and pixels.min() >= -1 and pixels.max() <= 1 and pixels.min() < 0
    assert part(range(20), seed=4).captions != part(range(20), seed=3).captions


@pytest.mark.parametrize(
    ("size", "told"),
    [(ClipSize(33, 32, 32, 8), "more than a scene of shapes has: 29"), (ClipSize(9, 32, 48, 8), "are square")],
)
def test_clips_that_can_t_be_scenes_are_refused(size: ClipSize, told: str):
    with pytest.raises(EvditError, match=told) as error:
        SOURCES["shapes"](PrepareDataOptions(source="shapes"), size, torch.device("cpu"))
    assert error.value.exit_code == USAGE and error.value.next_steps


@pytest.mark.parametrize(
    ("source", "told"),
    [(None, "there is nothing to prepare"), ("shape", "unknown source 'shape': the only one is shapes")],
)
def test_a_source_that_is_not_there_is_answered_with_those_that_are(source: str | None, told: str):
    with pytest.raises(EvditError, match=told) as error:
        check_source(PrepareDataOptions(source=source))
    assert error.value.exit_code == USAGE and error.value.next_steps == ("--source shapes",)
