"""The prompt files that results are measured on hold what the world says they hold."""

from pathlib import Path

import pytest

from vdit_cli.data.shapes_prompts import held_out_prompts, partial_prompts

PROMPTS = Path(__file__).parents[2] / "recipes" / "prompts"


@pytest.mark.parametrize(
    ("name", "count", "two_objects"),
    [("shapes-held-out.txt", 512, False), ("shapes-held-out-two-objects.txt", 256, True)],
)
def test_a_prompt_file_holds_the_held_out_prompts_of_seed_0(name: str, count: int, two_objects: bool):
    lines = (PROMPTS / name).read_text(encoding="utf-8").splitlines()
    assert lines == held_out_prompts(count, seed=0, two_objects=two_objects)


def test_the_partial_prompts_are_those_of_seed_0():
    """256 of one object."""
    assert (PROMPTS / "shapes-partial.txt").read_text(encoding="utf-8").splitlines() == partial_prompts(256)
