"""Times the Triton kernels on a GPU with every choice of block sizes: a JSON line a mask, fastest choice first.

`python -m tests.attention.tune_triton 8 3600 24 96 bf16 4:4,2:6,1:7` takes latent frames, tokens a frame, heads, head
width, type and masks. A line has ms and TFLOP/s on kept work, forward and with backward, and for each kernel the ms of
each choice (rows owned, rows a step, warps, stages). Set TRITON_CACHE_DIR to an empty folder to time anew.
"""

import json
import sys

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
        kernel.cache.clear()
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


if __name__ == "__main__":
    frames, frame_tokens, heads, head_dim, dtype, names = sys.argv[1:]
    grid = VideoGrid(int(frames), 1, int(frame_tokens))
    for name in names.split(","):
        mask = TileMask.parse(name, grid.frames)
        print(json.dumps(time_mask(mask, grid, int(heads), int(head_dim), DTYPES[dtype])), flush=True)  # noqa: T201
