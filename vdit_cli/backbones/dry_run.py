"""How much memory a network needs beside its weights, found by running it on tensors that have shapes but no data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside the block that are still alive; `peak` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


class _Fused(Function):
    """An empty output that keeps for the backward pass what fused attention keeps: q, k, v and itself."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """The output, without data."""
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        ctx.save_for_backward(q, k, v, out)
        return out


class FusedAttention(TorchFunctionMode):
    """Lets `scaled_dot_product_attention` make its output only, as fused kernels do; on "meta" it would make N x N."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An empty output for attention, anything else as it is."""
        if func is F.scaled_dot_product_attention:
            return _Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def working_bytes(run: Callable[[], object]) -> int:
    """The most bytes alive at once in tensors that `run` makes; it must work on "meta" tensors only.

    Work space inside an operation (of a convolution, say) is not seen.
    """
    with LiveBytes() as counted, FusedAttention():
        kept = run()
    del kept
    return counted.peak


def kept_bytes(run: Callable[[], object], apart: Iterable[torch.Tensor]) -> int:
    """The bytes that autograd keeps of `run`, on "meta" tensors, for its backward pass; those of `apart` aside."""
    elsewhere = {tensor.untyped_storage()._cdata for tensor in apart}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in elsewhere:
            kept[storage._cdata] = storage
        return tensor

    with torch.enable_grad(), FusedAttention(), saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())
