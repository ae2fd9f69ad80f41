"""Seeds as a person lists them."""

from __future__ import annotations

import pytest

from vdit_cli.errors import USAGE, EvditError
from vdit_cli.sampling.trajectory import read_seeds


def test_seeds_are_read_in_their_order():
    """Each once, the largest among them."""
    assert read_seeds(f"3, 0,3,{2**63 - 1}", "--seeds") == (3, 0, 2**63 - 1)


@pytest.mark.parametrize("text", ["-1", "a", "", "1,,2", "1.5", str(2**63), "9" * 30, "1" * 5000, "\u0661"])
def test_what_is_no_seed_is_refused(text: str):
    """Before any model is opened: a generator takes no larger one."""
    with pytest.raises(
        EvditError, match="is no seed: it must be a whole number from 0 to 9223372036854775807"
    ) as caught:
        read_seeds(text, "--seeds")
    assert (caught.value.where, caught.value.exit_code) == ("--seeds", USAGE) and len(caught.value.what) < 200
