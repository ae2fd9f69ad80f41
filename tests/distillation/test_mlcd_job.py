"""What is asked of a distillation is checked before anything loads."""

from __future__ import annotations

import pytest

from vdit_cli.distillation.mlcd_job import check_parts
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.recipe import load


@pytest.mark.parametrize(
    ("batch", "parts", "ranks", "where", "steps"),
    [
        (3, 4, 1, "--set distill_mlcd.accumulation=4", ["batch_size=4", "accumulation=3"]),
        (5, 2, 3, "--set distill_mlcd.accumulation=2", ["batch_size=6", "accumulation=1", "--gpus 2"]),
        (3, 1, 4, "--set distill_mlcd.batch_size=3", ["batch_size=4", "--gpus 3"]),
        (1, 2, 2, "--set distill_mlcd.accumulation=2", ["batch_size=4", "--gpus 1 --set distill_mlcd.accumulation=1"]),
    ],
)
def test_more_parts_than_clips_are_told_as_they_are_typed(
    batch: int, parts: int, ranks: int, where: str, steps: list[str]
):
    """The value that is to blame by its flag; each step offered fits, alone."""
    given = [f"distill_mlcd.batch_size={batch}", *([f"distill_mlcd.accumulation={parts}"] if parts > 1 else [])]
    with pytest.raises(EvditError, match=f"batch_size is {batch}: .* need at least {parts * ranks} clips") as caught:
        check_parts(load(None, given, {}).distill_mlcd, ranks)
    assert caught.value.exit_code == USAGE and caught.value.where == where
    flags = [step if step.startswith("--") else f"--set distill_mlcd.{step}" for step in steps]
    assert list(caught.value.next_steps) == flags
    for flag in flags:
        words = flag.split()
        sets = [word for word in words if "=" in word]
        here = int(words[words.index("--gpus") + 1]) if "--gpus" in words else ranks
        check_parts(load(None, [*given, *sets], {}).distill_mlcd, here)


def test_ranks_are_to_blame_where_nothing_was_set():
    """The batch and the parts are the defaults."""
    options = load(None, [], {}).distill_mlcd
    with pytest.raises(EvditError) as caught:
        check_parts(options, options.batch_size + 1)
    assert caught.value.where == f"{options.batch_size + 1} ranks (--gpus, torchrun)"
