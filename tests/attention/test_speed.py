"""Tile attention must be worth it: its time against dense attention, measured in one run."""

import json
import os
import subprocess
import sys
from pathlib import Path


def test_mask_1_7_takes_half_of_dense_or_less_on_two_cores() -> None:
    """At most 0.5 of SDPA's time (ideal 0.34), in a process of its own whose idle threads sleep instead of spinning.

    Spinning threads and other work on the same cores make short parallel sections wait for the scheduler, and tile
    attention has more of them than one dense call. The first round that is good enough counts.
    """
    found = subprocess.run(
        [sys.executable, "-m", "tests.attention.speed_ratio", "0.5"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    ratios = json.loads(found.stdout)
    assert min(ratios) <= 0.5, ratios
