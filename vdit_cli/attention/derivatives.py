"""Which derivatives tile attention has: first ones by backward. Every other is refused here, in the same words.

Left to torch, they would be zero or missing without a word: an operator's gradient is a constant to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual
from torch.library import register_autograd

INSTEAD = "use vdit_cli.attention.reference.reference_attention, which has every derivative (N x N scores in memory)"


def differentiable_once(
    forward: Any, backward: Any, differentiate: Callable[..., Any], save: Callable[..., None]
) -> None:
    """Register `differentiate` as the gradient of the operator `forward`; that of its `backward` is refused.

    `differentiate(ctx, *grads)` calls `backward`, which so stays part of the graph: what depends on its result knows.
    """
    register_autograd(forward, differentiate, setup_context=save)
    register_autograd(backward, _refuse_second)


def refuse_forward_mode(*operands: Tensor) -> None:
    """Raise RuntimeError where an operand carries a tangent (torch.func.jvp, torch.autograd.forward_ad)."""
    if not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in operands):
        raise RuntimeError(f"tile attention has no derivatives in forward mode (jvp): {INSTEAD}")


def _refuse_second(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(f"tile attention has no second derivatives (create_graph=True): {INSTEAD}")
