"""Compiles the Triton kernels for GPUs that need not be there, and prints registers, spills and shared memory as JSON.

`python -m tests.attention.compile_triton 90 96 bf16 128,64,4,2` takes the compute capability, the head width, the type
of q, k, v and the choice (rows owned, rows a step, warps, stages); TRITON_INTERPRET must not be set.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vdit_cli.attention.kernels import triton_backward, triton_forward, triton_merge
from vdit_cli.attention.kernels.triton_walk import widths

FLOATS = ("LSE", "MEAN", "LSE1", "LSE2")
SCALARS = {"scale": "fp32", "scale2": "fp32"}


def jit_of(kernel: object) -> triton.JITFunction:
    """The kernel inside an autotuner, or the kernel itself."""
    return kernel if isinstance(kernel, triton.JITFunction) else kernel.fn  # type: ignore[attr-defined]


def source_of(kernel: triton.JITFunction, dtype: str, constants: dict[str, int]) -> ASTSource:
    """The kernel with pointers and strides that are multiples of 16, as they are for real tensors."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in SCALARS:
            signature[name] = SCALARS[name]
        elif name.isupper():
            signature[name] = "*fp32" if name in FLOATS else f"*{dtype}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if re.search("_[bnh]$", name):
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constexprs=constants, attrs=attributes)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers a thread and bytes of spilled memory, by cuobjdump where Triton brings it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", told.stdout + told.stderr)
    return {"registers": int(found[1]), "stack": int(found[2])} if found else {}


def compile_all(capability: int, head_dim: int, dtype: str, shape: tuple[int, int, int, int]) -> dict[str, dict]:
    """What each kernel needs; a kernel that doesn't compile raises."""
    own, walk, warps, stages = shape
    parts = dict(zip(("W0", "W1", "W2"), widths(head_dim), strict=True))
    blocks = {"WIDE": 0, "OWN": own, "WALK": walk}
    rows = {"D": head_dim, "PADDED": triton.next_power_of_2(head_dim), "OWN": 32}
    kernels = {
        "forward": (triton_forward._forward, parts | blocks),
        "to queries": (triton_backward._to_queries, parts | blocks),
        "to keys": (triton_backward._to_keys, parts | blocks),
        "mean": (triton_backward._mean, rows),
        "join": (triton_merge._join, rows),
    }
    found = {}
    for name, (kernel, constants) in kernels.items():
        source = source_of(jit_of(kernel), dtype, constants)
        options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        found[name] = resources(made.asm["cubin"]) | {"shared": made.metadata.shared}
    return found


if __name__ == "__main__":
    capability, head_dim, dtype, shape = sys.argv[1:]
    own, walk, warps, stages = map(int, shape.split(","))
    print(json.dumps(compile_all(int(capability), int(head_dim), dtype, (own, walk, warps, stages))))  # noqa: T201
