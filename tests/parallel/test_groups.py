"""The group of ranks is gone when its block ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import run_forked
from vdit_cli.errors import EvditError
from vdit_cli.parallel.groups import joined

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


def asked(folder: Path) -> None:
    """In a rank: write down what the first one answers and raises."""

    def fail() -> str:
        raise EvditError("no room", where="here", next_steps=["make room"], exit_code=5)

    with joined("cpu") as ranks:
        word = ranks.from_first(lambda: f"of {ranks.rank}")
        with pytest.raises(EvditError) as caught:
            ranks.from_first(fail)
        error = caught.value
        told = f"{word} {error.what} {error.where} {error.next_steps} {error.exit_code}"
        (folder / f"rank-{ranks.rank}.txt").write_text(told, encoding="utf-8")


def test_what_the_first_rank_answers_or_raises_is_every_rank_s(tmp_path: Path):
    """Else the others would wait for an answer that never comes."""
    done = run_forked(2, asked, tmp_path)
    assert done.codes == [0, 0], done.err
    told = [(tmp_path / f"rank-{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)]
    assert told == ["of 0 no room here ('make room',) 5"] * 2
