"""Times the Triton kernels on a GPU with every choice of block sizes: a JSON line a mask, fastest choice first.

`python -m tests.attention.tune_triton 240` takes the shapes of docs/benchmarks.md in order and stops before the mask
that would pass 240 seconds, naming on stderr what it left out. `python -m tests.attention.tune_triton 8 3600 24 96 bf16
4:4,2:6,1:7` takes latent frames, tokens a frame, heads, head width, type and masks. A line has ms and TFLOP/s on kept
work, forward and with backward, and for each kernel the ms of each choice (rows owned, rows a step, warps, stages),
timed anew for every mask; Triton's kept choices are neither read nor written.
"""

import json
import sys
import time

import torch
from triton.runtime import Autotuner
from triton.testing import do_bench

from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.kernels import triton_backward, triton_forward
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import passes

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
KERNELS = {
    "forward": triton_forward._forward,
    "to queries": triton_backward._to_queries,
    "to keys": triton_backward._to_keys,
}


def forget(kernel: Autotuner) -> None:
    """Drop what was tuned; the choice kept on disk is that of any mask at about this length, so it is not read."""
    kernel.cache.clear()
    kernel.configs_timings = {}
    kernel.cache_results = False


def choices(kernel: Autotuner) -> dict[str, float]:
    """Median ms of each choice at the last shape that was tuned for, fastest first."""
    timed = {
        f"{each.kwargs['OWN']},{each.kwargs['WALK']},{each.num_warps},{each.num_stages}": times[0]
        for each, times in kernel.configs_timings.items()
    }
    return dict(sorted(timed.items(), key=lambda pair: pair[1]))


def time_mask(mask: TileMask, grid: VideoGrid, heads: int, head_dim: int, dtype: torch.dtype) -> dict:
    """Forward and forward with backward of one mask, tuned for it alone."""
    for kernel in KERNELS.values():
        forget(kernel)
    case = Case(grid, heads, head_dim, 1, dtype, torch.device("cuda"), needs_grad=True)
    attend = bind(mask, case, "triton")
    shape = (1, grid.tokens, heads, head_dim)
    q, k, v = (torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
    grad = torch.randn(shape, device="cuda", dtype=dtype)
    # In the order of the passes: the gather is not the kernel's.
    run, found = attend.run, passes(mask, grid)
    torch.autograd.grad(run(q, k, v, found), (q, k, v), grad)
    with torch.no_grad():
        forward = do_bench(lambda: run(q, k, v, found), return_mode="median")
    both = do_bench(lambda: torch.autograd.grad(run(q, k, v, found), (q, k, v), grad), return_mode="median")
    work = 4 * heads * head_dim * sum(each.pairs for each in found) / 1e9
    return {
        "mask": mask.name,
        "forward": {"ms": forward, "TFLOP/s": work / forward},
        "forward and backward": {"ms": both, "TFLOP/s": 3.5 * work / both},
        "choices": {name: choices(kernel) for name, kernel in KERNELS.items()},
    }


SHAPES = [  # frames, tokens a frame, heads, head width, masks: the sparsest, a middle one, and Table 1's densest
    ("8", "3600", "24", "96", "bf16", "1:7,2:6,4:4"),
    ("24", "3600", "24", "96", "bf16", "3:21"),
    ("21", "1560", "40", "128", "bf16", "3:18,7:14"),
    ("13", "1350", "48", "64", "bf16", "1:12,3:10"),
    ("8", "64", "6", "48", "bf16", "1:7"),
    ("21", "3600", "40", "128", "bf16", "3:18"),
]
"""What is tuned where only a time is given, the most wanted first."""


def asked_for(arguments: list[str]) -> tuple[float, list[tuple[str, ...]]]:
    """Seconds to take, and a shape with one mask each."""
    shapes = SHAPES if len(arguments) == 1 else [tuple(arguments)]
    seconds = float(arguments[0]) if len(arguments) == 1 else float("inf")
    return seconds, [(*shape[:5], name) for shape in shapes for name in shape[5].split(",")]


def tune(arguments: list[str]) -> None:
    """A line a mask, as long as another one like the longest so far would end in time."""
    seconds, tasks = asked_for(arguments)
    start, longest = time.monotonic(), 0.0
    for place, (*sizes, dtype, name) in enumerate(tasks):
        before = time.monotonic()
        if before - start + longest > seconds:
            sys.stderr.write(f"no time left for {', '.join(' '.join(task) for task in tasks[place:])}\n")
            return
        frames, frame_tokens, heads, head_dim = map(int, sizes)
        found = time_mask(
            TileMask.parse(name, frames), VideoGrid(frames, 1, frame_tokens), heads, head_dim, DTYPES[dtype]
        )
        longest = max(longest, time.monotonic() - before)
        told = {"shape": "x".join(sizes), "dtype": dtype, "seconds": time.monotonic() - before}
        sys.stdout.write(json.dumps(told | found) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    tune(sys.argv[1:])
