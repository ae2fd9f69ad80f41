"""The Triton kernels under two compilers: Triton's own, for GPUs that need not be there, and torch.compile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from tests.attention.cases import inputs, outputs
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.kernels import triton
from vdit_cli.attention.kernels.walk import walk_of
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import passes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRID = VideoGrid(4, 2, 3, text_after=1)
CASE = Case(GRID, 2, 16, 1, torch.float32, torch.device(DEVICE), needs_grad=True)
ROOT = Path(__file__).resolve().parents[2]

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
"""KiB of shared memory that a block may have, by compute capability (CUDA C++ Programming Guide)."""

pytestmark = pytest.mark.skipif(triton.supports(CASE) is not None, reason=str(triton.supports(CASE)))


def compiled(*arguments: str, cache: Path) -> dict[str, dict[str, int]]:
    """What `compile_triton` says of each kernel."""
    bare = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    told = subprocess.run(
        [sys.executable, "-m", "tests.attention.compile_triton", *arguments],
        cwd=ROOT, env=bare | {"TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert set(found) == {"forward", "to queries", "to keys", "mean", "join"}
    return found


@pytest.mark.parametrize("arguments", [("80", "48", "fp16", "64,64,4,2"), ("90", "96", "bf16", "128,64,8,2")])
def test_it_compiles_without_a_gpu(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """What the interpreter runs is also code for Ampere and Hopper, without spills, within an SM's shared memory."""
    found = compiled(*arguments, cache=tmp_path)
    assert all(each["shared"] <= 160 * 1024 for each in found.values())
    assert found["forward"].get("stack", 0) == found["to queries"].get("stack", 0) == 0, found


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [48, 64, 96, 128])
@pytest.mark.parametrize("capability", SHARED)
def test_each_gpu_has_a_choice_that_fits(capability: int, head_dim: int, tmp_path: Path) -> None:
    """One choice of block sizes compiles for all of them, at each width, and fits the memory that a block may have."""
    found = compiled(str(capability), str(head_dim), "bf16", "64,64,4,2", cache=tmp_path)
    assert all(each["shared"] <= SHARED[capability] * 1024 for each in found.values()), found


def test_the_operator_keeps_its_promises() -> None:
    """torch's own check: schema, shapes told for tensors without data, autograd, and autograd through the compiler."""
    q, k, v, _ = inputs(TileMask(4, (0,)), GRID, 1, 2, 16, device=DEVICE)
    walk = list(walk_of(passes(TileMask(4, (0,)), GRID)))
    opcheck(torch.ops.evdit.walk_keys.default, (q, k, v, walk))
    opcheck(torch.ops.evdit.walk_keys.default, (q, k.detach(), v, walk))


def test_one_graph_holds_it() -> None:
    """fullgraph=True passes, and output and gradients are those of eager."""
    mask = TileMask(4, (0, 2))
    attend = bind(mask, CASE, "triton")
    given = inputs(mask, GRID, 1, 2, 16, device=DEVICE)
    plain = outputs(attend, *given)
    torch._dynamo.reset()
    compiled = outputs(torch.compile(attend, backend="aot_eager", fullgraph=True), *given)
    assert all(torch.equal(compiled[part], plain[part]) for part in plain)
