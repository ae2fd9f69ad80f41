"""What tile attention allocates beside its operands, every tensor of every operator counted: none of size N x N.

At 86,400 tokens (24 frames of 3600) the most that may be alive beside the output is twice the size of the output. The
number of frames and the width are those of that case; tokens a frame are fewer, and nothing but them scales.
"""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.by_passes import attend_by_passes
from vdit_cli.attention.kernels import triton
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

MASKS = ("1:23", "3:21", "12:12")


class Counted(TorchDispatchMode):
    """Bytes of storages that operators made and that are still alive: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = self.largest = 0
        self.known: set[int] = set()

    def see(self, x: Tensor) -> None:
        """Count a storage when it is first seen, until it is gone."""
        storage = x.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key == 0 or key in self.known:
            return
        self.known.add(key)
        self.alive += size
        self.most, self.largest = max(self.most, self.alive), max(self.largest, size)
        weakref.finalize(storage, self.lose, key, size)

    def lose(self, key: int, size: int) -> None:
        """A storage is gone."""
        self.known.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operator and look at what it gives."""
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, list | tuple) else (found,):
            if isinstance(x, Tensor):
                self.see(x)
        return found


def counted(call: Callable[[], Tensor], inputs: list[Tensor]) -> tuple[Counted, Tensor]:
    """What a call allocates; views of its inputs are none of it."""
    counter = Counted()
    counter.known |= {x.untyped_storage().data_ptr() for x in inputs}
    gc.collect()
    with counter, torch.no_grad():
        out = call()
    return counter, out


def operands(grid: VideoGrid, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v of zeros."""
    return [torch.zeros(1, grid.tokens, heads, width, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("name", MASKS)
def test_the_counter_sees_what_is_alive(name: str) -> None:
    """Two tensors of 4 kB at once, one of them dropped before a third: 8 kB at most."""
    counter, out = counted(lambda: (torch.ones(1024) + torch.ones(1024)).neg(), [])
    assert out.shape == (1024,) and 8192 <= counter.most <= 12288 and counter.largest == 4096


@pytest.mark.parametrize("name", MASKS)
def test_the_decomposition(name: str) -> None:
    """Passes and their joining, bfloat16 as on a GPU: at most twice the output beside it, log-sum-exps included."""
    grid, mask = VideoGrid(24, 1, 36), TileMask.parse(name, 24)
    q, k, v = operands(grid, 2, 96, torch.bfloat16)
    attend = bind(mask, Case(grid, 2, 96, 1, torch.bfloat16, torch.device("cpu")), "sdpa")
    counter, out = counted(lambda: attend_by_passes(q, k, v, attend.passes, 0.1, "cpu flash"), [q, k, v])
    size = out.numel() * out.element_size()
    assert size < counter.most <= 3 * size, counter.most / size
    assert counter.largest <= size


@pytest.mark.parametrize("name", MASKS)
def test_the_triton_kernels(name: str) -> None:
    """The output and a float32 number a query and head, whatever the mask."""
    grid, mask = VideoGrid(24, 1, 3), TileMask.parse(name, 24)
    case = Case(grid, 2, 96, 1, torch.float32, torch.device("cpu"))
    if triton.supports(case) is not None:
        pytest.skip(str(triton.supports(case)))
    q, k, v = operands(grid, 2, 96, torch.float32)
    attend = bind(mask, case, "triton")
    counter, out = counted(lambda: attend.run(q, k, v, attend.passes), [q, k, v])
    size = out.numel() * out.element_size()
    assert size < counter.most <= size + 4 * 2 * grid.tokens
