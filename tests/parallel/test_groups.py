"""The group of ranks is gone when its block ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LATE_IMPORT = """
import os
from pathlib import Path
from vdit_cli.parallel.groups import joined

def threads():
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]

with joined("cpu") as ranks:
    ranks.wait()
    while not any("gloo" in name for name in threads()):  # a thread names itself a little after it began
        os.sched_yield()
    import torch.distributed.nn  # as opening a model does
assert not any("gloo" in name for name in threads()), threads()
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="names of threads are Linux's")
def test_no_thread_of_the_group_outlives_it():
    """One that did would abort the process if it was at work while Python ended."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", LATE_IMPORT], env=os.environ | rank, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
