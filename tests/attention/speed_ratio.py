"""Prints the time of tile attention over that of dense SDPA on two CPU threads, round by round, as JSON.

F = 8, 256 tokens a frame, 6 heads of 48, mask 1:7, float32, forward; both are timed in turns and compared by medians.
`python -m tests.attention.speed_ratio 0.5` stops at the first round that is at most 0.5.
"""

import json
import sys
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from vdit_cli.attention.bind import Case, bind
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

ROUNDS = 12
REPEATS = 9


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain SDPA over (B, N, H, D)."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


def seconds(call: object, operands: list[Tensor]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call(*operands)  # type: ignore[operator]
    return time.perf_counter() - start


def measure(enough: float) -> list[float]:
    """The ratio of each round, up to the first that is at most `enough`."""
    torch.set_num_threads(2)
    grid = VideoGrid(8, 16, 16)
    tiles = bind(TileMask.parse("1:7", 8), Case(grid, 6, 48, 1, torch.float32, torch.device("cpu")))
    operands = [torch.randn(1, grid.tokens, 6, 48) for _ in range(3)]
    ratios: list[float] = []
    while len(ratios) < ROUNDS and min(ratios, default=enough + 1) > enough:
        times = [(seconds(tiles, operands), seconds(dense, operands)) for _ in range(REPEATS)]
        ratios.append(median(sparse for sparse, _ in times) / median(full for _, full in times))
    return ratios


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]))))  # noqa: T201
