"""Tile attention by flash-attn-4 (extra `fa4`): its dense kernels for each pass, joined by their log-sum-exp.

Letters: B batch, N tokens in the order of the passes, H heads, D head width.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vdit_cli.attention.by_passes import attend_by_passes
from vdit_cli.attention.dense import FA4, HALVES
from vdit_cli.tiles.passes import Pass

if TYPE_CHECKING:
    from vdit_cli.attention.bind import Case

NAME = "fa4"
PACKAGE = "flash-attn-4"
WIDTHS = (64, 96, 128)
"""Head widths whose output and gradients are right on a GPU; at 48 they were not, and its kernels took it."""
CAPABILITIES = (9, 10, 11, 12)
"""GPUs, by the first part of their compute capability, for which it has both a forward and a backward kernel."""


def supports(case: Case) -> str | None:
    """None, or why this kernel can't take `case`; the package is looked up and not imported."""
    if case.device.type != "cuda":
        return f"it runs on CUDA devices, not on {case.device.type}"
    if case.dtype not in HALVES:
        return f"{case.dtype} is none of float16, bfloat16"
    if case.head_dim not in WIDTHS:
        widths = ", ".join(map(str, WIDTHS))
        return f"head width {case.head_dim} is none of {widths}, the widths whose results were right on a GPU"
    try:
        version(PACKAGE)
    except PackageNotFoundError:
        return f"{PACKAGE} is not installed (pip install 'evdit[fa4]')"
    major, minor = torch.cuda.get_device_capability(case.device)
    if major not in CAPABILITIES:
        return f"compute capability {major}.{minor} is none of {', '.join(f'{known}.x' for known in CAPABILITIES)}"
    return None


def run(q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor, passes: tuple[Pass, ...]) -> Tensor:
    """Attention (B, N, H, D) over the pairs of `passes`, a full mask's single pass included; differentiable once."""
    return attend_by_passes(q_BNHD, k_BNHD, v_BNHD, passes, q_BNHD.shape[-1] ** -0.5, FA4.name)
