"""Triton kernels without tuning: one choice of block sizes for each type, so that a test compiles each kernel once."""

from __future__ import annotations

from typing import Any

import pytest

CHOICE = {"OWN": 64, "WALK": 64, "num_warps": 4, "num_stages": 2}
"""One that all three kernels have, and that fits every GPU they are written for at every head width."""


def one_choice_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every tuned kernel try CHOICE for half types, and the one for float32; nothing is kept on disk."""
    from vdit_cli.attention.kernels import triton_backward, triton_forward
    from vdit_cli.attention.kernels.triton_walk import FLOAT32, INTERPRETED

    kernel: Any
    for kernel in (triton_forward._forward, triton_backward._to_queries, triton_backward._to_keys):
        few = [each for each in kernel.configs if each is FLOAT32 or CHOICE.items() <= each.all_kwargs().items()]
        assert INTERPRETED or len(few) == 2, few
        monkeypatch.setattr(kernel, "configs", few or kernel.configs)
        monkeypatch.setattr(kernel, "cache", {})
        monkeypatch.setattr(kernel, "cache_results", False)
