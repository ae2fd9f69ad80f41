"""How much memory a network needs beside its weights, found by running it on tensors that have shapes but no data."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
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


class FusedAttention(TorchFunctionMode):
    """Lets `scaled_dot_product_attention` make its output only, as fused kernels do; on "meta" it would make N x N."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """An empty output for attention, anything else as it is."""
        if func is F.scaled_dot_product_attention:
            return torch.empty_like(args[0], memory_format=torch.contiguous_format)
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
