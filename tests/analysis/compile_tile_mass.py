"""Compile the kernel of tile masses for an NVIDIA H100, on any machine: `python -m tests.analysis.compile_tile_mass`.

Prints the shared memory that each type of q and k needs, in bytes; TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from vdit_cli.analysis.kernels.tile_mass import OWN, WALK, group_lse_kernel

POINTERS = {"lse": "*fp32", "scale": "fp32"}


def main() -> None:
    """Head widths 96 and 48, as the two registered models have them."""
    for kind, width, precision in (("*bf16", 128, "tf32"), ("*fp16", 128, "tf32"), ("*fp32", 64, "ieee")):
        fixed = {"OWN": OWN, "WALK": WALK, "WIDTH": width, "PRECISION": precision}
        types = {**POINTERS, "q": kind, "k": kind, **dict.fromkeys(fixed, "constexpr")}
        signature = {name: types.get(name, "i32") for name in group_lse_kernel.arg_names}
        made = compile(
            ASTSource(group_lse_kernel, signature, constexprs=fixed),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": 8, "num_stages": 3},
        )
        print(kind, made.metadata.shared)  # noqa: T201


if __name__ == "__main__":
    main()
