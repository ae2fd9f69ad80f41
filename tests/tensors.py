"""What tensors take, counted in this process: the same on every machine, unlike the memory of a process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LargestTensor(TorchDispatchMode):
    """Inside the block, `bytes` is the size of the largest tensor that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at what it gives."""
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and not each.is_meta:
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return out


@contextmanager
def parameters_made() -> Iterator[Callable[[], int]]:
    """A function that tells the bytes of all parameters made inside the block that are still alive, whoever holds them.

    What was there before is frozen, and stays so, which makes looking through all objects quick.
    """

    def alive_bytes() -> int:
        gc.collect()
        alive = [each for each in gc.get_objects() if issubclass(type(each), torch.nn.Parameter) and not each.is_meta]
        return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive}.values())

    gc.collect()
    gc.freeze()
    yield alive_bytes
