"""A whole run that is killed, interrupted or out of disk at points all along it, and gone on with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.forked import run_forked
from tests.fuzz.faults import Points, run_with_fault
from tests.pipeline.conftest import Whole
from vdit_cli.cli.app import main

CODES = {"kill": -9, "interrupt": 130, "full": 1}


@pytest.fixture(scope="module")
def points(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many points a whole run passes."""
    with pytest.MonkeyPatch.context() as patch, Points().watching() as passed:
        patch.chdir(tmp_path_factory.mktemp("points"))
        assert main(whole.words) == 0
    return len(passed.passed)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("fault", CODES)
@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.55, 0.7, 0.9])
def test_a_fault_anywhere_is_gone_on_from(whole: Whole, points: int, evdit, fault: str, share: float):
    """Status reads what is left, the same command ends well, and plan and score are those of an undisturbed run."""
    done = run_forked(1, run_with_fault, fault, 1 + int(share * points), whole.words)
    assert done.codes == [CODES[fault]] and "Traceback" not in done.err
    code, out, _ = evdit("status", "run")
    assert code == 0 and out.splitlines()[0] in ("run: interrupted", "run: failed")
    code, _, err = evdit(*whole.words)
    assert code == 0, err
    for file in ("search-masks/plan.json", "score/score.json"):
        assert (Path("run") / file).read_bytes() == (whole.path / file).read_bytes(), file
    assert list(Path("run").rglob(".evdit-*")) == []
