"""The group of ranks is gone when its block ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import atexit, os
from pathlib import Path
from vdit_cli.errors import Interrupted
from vdit_cli.parallel.groups import joined

def threads():
    return [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]

atexit.register(lambda: print(threads()))  # the last thing that Python does
with joined("cpu") as ranks:
    while not any("gloo" in name for name in threads()):  # a thread names itself a little after it began
        os.sched_yield()
"""
PROGRAMS = {
    "a late import": """
    import torch.distributed.nn  # as opening a model does
""",
    "shards": """
    import torch
    from vdit_cli.parallel.sharding import shard
    model = shard(torch.nn.Linear(4, 4), [], ranks, torch.device("cpu"))
    model(torch.ones(2, 4)).sum().backward()
    del model
""",
    "Ctrl-C": """
    raise Interrupted("stopped")
""",
}


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="names of threads are Linux's")
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_thread_of_the_group_is_left_when_python_ends(program: str):
    """One that was would abort the process if it was at work then."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    command = [sys.executable, "-c", START + PROGRAMS[program]]
    done = subprocess.run(command, env=os.environ | rank, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == (program == "Ctrl-C"), done.stderr
    assert "python" in done.stdout and "gloo" not in done.stdout
