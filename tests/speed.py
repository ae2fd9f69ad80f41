"""Print how quick this machine is at what should be quick, as JSON; `python -m tests.speed FILE` also keeps it.

No test: times depend on what else the machine does. `.ci/run` prints them, docs/data/speed-cpu.json keeps those of one
machine and day. A part whose times compete is timed in turns, and medians are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.analysis.test_tile_mass import random_qk
from vdit_cli.analysis.tile_mass import tile_mass
from vdit_cli.attention.bind import Case, bind
from vdit_cli.bench.clock import clock_for, time_in_turns
from vdit_cli.bench.facts import machine_facts, package_versions, today
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask


def command_seconds(*args: str, tries: int = 3) -> float:
    """Median wall-clock seconds of a command line, its start included."""
    seconds = []
    for _ in range(tries):
        with TemporaryDirectory() as folder:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "vdit_cli", *args], cwd=folder, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
    return round(median(seconds), 3)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain SDPA over (B, N, H, D)."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def tile_attention_ratio() -> float:
    """Time of mask 1:7 over that of dense SDPA: F = 8, 256 tokens a frame, 6 heads of 48, float32; ideal 0.34."""
    grid, device = VideoGrid(8, 16, 16), torch.device("cpu")
    attend = bind(TileMask.parse("1:7", 8), Case(grid, 6, 48, 1, torch.float32, device), "sdpa")
    operands = [torch.randn(1, grid.tokens, 6, 48) for _ in range(3)]
    calls = {"tiles": lambda: attend(*operands), "dense": lambda: dense(*operands)}
    found = time_in_turns(calls, clock_for(device), 3, 9)
    return round(found["tiles"].median / found["dense"].median, 3)


def tile_mass_ratio() -> float:
    """Time of the tile masses of 28,800 tokens x 24 heads x 96 in bfloat16 over that of one dense call, on a GPU."""
    grid, device = VideoGrid(8, 45, 80), torch.device("cuda")
    q, k = (x.to(device, torch.bfloat16) for x in random_qk(grid, 24, 96, scale=1.0))
    operands = [x[None] for x in (q, k, k)]
    calls = {"mass": lambda: tile_mass(q, k, grid, "triton"), "dense": lambda: dense(*operands)}
    found = time_in_turns(calls, clock_for(device), 3, 5)
    return round(found["mass"].median / found["dense"].median, 3)


def measure() -> dict[str, object]:
    """Everything, with the day, the machine and the versions that it is of."""
    shares = ("bench", "attention", "--table", "1", "--kernels", "none", "-o", "run")
    on_gpu = torch.cuda.is_available()
    return {
        "date": today(),
        "command": "OMP_WAIT_POLICY=passive python -m tests.speed docs/data/speed-cpu.json",
        "machine": machine_facts(torch.device("cuda" if on_gpu else "cpu")),
        "versions": package_versions(),
        "seconds of evdit generate --help": command_seconds("generate", "--help", tries=5),
        "seconds of evdit bench attention --table 1 --kernels none": command_seconds(*shares),
        "time of mask 1:7 over dense SDPA": tile_attention_ratio(),
    } | ({"time of tile masses over dense SDPA": tile_mass_ratio()} if on_gpu else {})


if __name__ == "__main__":
    text = json.dumps(measure(), indent=2) + "\n"
    for file in sys.argv[1:]:
        Path(file).write_text(text, encoding="utf-8")
    print(text, end="")  # noqa: T201
