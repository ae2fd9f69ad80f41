"""Whether the transformer's blocks are compiled for a generation: what was asked for, and what the machine can."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from vdit_cli.backbones.base import Backbone
from vdit_cli.errors import ENVIRONMENT, EvditError
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.timing import Progress

CHOICES = ("auto", "blocks", "none")
LEAST_TOKENS = 8192
"""Below so many video tokens a generation is over before compiling would have paid [ours, not measured]."""
COMPILERS = ("cc", "gcc", "clang", "cl")


def is_compiled(choice: str, offload: str, backbone: Backbone, spec: SampleSpec, progress: Progress) -> bool:
    """Whether to compile: "blocks" yes, "none" no, "auto" on a GPU for videos of LEAST_TOKENS and more; says so.

    Raises EvditError: 2 for "blocks" with offload "block", 3 for "blocks" on a machine that can't compile.
    """
    grid = backbone.grid(spec.video_frames, spec.height, spec.width)
    on_gpu = backbone.device.type == "cuda"
    if choice == "none" or (choice == "auto" and (not on_gpu or grid.tokens < LEAST_TOKENS or offload == "block")):
        return False
    if offload == "block":
        raise EvditError(
            "blocks whose weights come and go can't be compiled",
            where="generate.compile",
            next_steps=["--offload model", "--set generate.compile=none"],
        )
    reason = why_not(on_gpu)
    if reason is None:
        progress.say("compiling the blocks: the first step takes longer (--set generate.compile=none spares it)")
        return True
    if choice == "auto":
        progress.say(f"not compiled, steps take longer: {reason}")
        return False
    raise EvditError(
        f"this machine can't compile: {reason}",
        where="generate.compile",
        next_steps=["--set generate.compile=none"],
        exit_code=ENVIRONMENT,
    )


def why_not(on_gpu: bool) -> str | None:
    """None where torch.compile has what it needs, else what is missing."""
    if on_gpu and find_spec("triton") is None:
        return "triton is not installed"
    named = (os.environ.get("CC") or os.environ.get("CXX") or "").split()  # "ccache gcc": a program and its words
    if not any(shutil.which(name) for name in (named[:1] or COMPILERS)):
        return "there is no C compiler"
    return None
