"""What tile attention takes beside its results: every tensor counted that an operator makes in the kernel's own body.

A registered operator is a single call to a counter, so the body that it runs is called here. The frames and the width
are those of 86,400 tokens (24 frames of 3600); tokens a frame are fewer, and nothing but them scales. Work space inside
torch's operators is not seen: on a GPU the allocator is asked.
"""

import gc
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vdit_cli.attention.bind import Case, bind, kernel_module
from vdit_cli.attention.by_passes import backward_by_passes, forward_by_passes, spelled
from vdit_cli.attention.kernels import triton
from vdit_cli.attention.kernels.walk import walk_of
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import passes

GPU = torch.device("cuda")
FRAMES, WIDTH = 24, 96
MASKS = ("1:23", "3:21", "12:12")
MOST = {torch.float32: 1.0, torch.bfloat16: 1.25}
"""Bytes alive beside the results, in sizes of the output: the output of one piece, and what joins halves in float32."""
MOST_BACKWARD = 3.0
"""The same: the gradients of one piece."""


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


def counted(call: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> tuple[Counted, Sequence[Tensor]]:
    """What a call allocates, and its results; views of its inputs are none of it."""
    counter = Counted()
    counter.known |= {x.untyped_storage().data_ptr() for x in inputs}
    gc.collect()
    with counter, torch.no_grad():
        found = call()
    return counter, found


def beside(call: Callable[[], Sequence[Tensor]], inputs: Sequence[Tensor]) -> tuple[float, Sequence[Tensor]]:
    """The most that was alive beside the results of a call, in sizes of the first of them; and the results."""
    counter, found = counted(call, inputs)
    assert counter.most >= counter.alive >= size(*found)
    return (counter.most - size(*found)) / size(found[0]), found


def size(*tensors: Tensor) -> int:
    """Bytes."""
    return sum(x.numel() * x.element_size() for x in tensors)


def operands(tokens: int, heads: int, dtype: torch.dtype, batch: int = 1) -> list[Tensor]:
    """q, k, v and the output's gradient, of zeros."""
    return [torch.zeros(batch, tokens, heads, WIDTH, dtype=dtype) for _ in range(4)]


def by_passes(name: str, dtype: torch.dtype, batch: int) -> tuple[float, float]:
    """Forward and backward of the dense passes: the most alive beside their results, in sizes of the output."""
    grid = VideoGrid(FRAMES, 1, 36)
    numbers = spelled(passes(TileMask.parse(name, FRAMES), grid))
    q, k, v, grad = operands(grid.tokens, 12, dtype, batch)
    forward, (out, lse) = beside(lambda: forward_by_passes(q, k, v, numbers, 0.1, "")[:2], [q, k, v])
    given = (grad, q, k, v, out, lse)
    backward, _ = beside(lambda: backward_by_passes(*given, [], numbers, 0.1, ""), given)
    return forward, backward


def test_the_counter_sees_what_is_alive() -> None:
    """Two tensors of 4 kB at once, one of them dropped before a third: 8 kB at most."""
    counter, out = counted(lambda: (torch.ones(1024) + torch.ones(1024)).neg(), [])
    assert out.shape == (1024,) and 8192 <= counter.most <= 12288 and counter.largest == 4096


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("dtype", MOST, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_the_passes(name: str, dtype: torch.dtype, batch: int) -> None:
    """No operand is copied, and at most one piece's result waits to be joined."""
    forward, backward = by_passes(name, dtype, batch)
    local = 1 - int(name.split(":")[0]) / FRAMES
    assert local / batch < forward <= MOST[dtype]
    assert backward <= MOST_BACKWARD


@pytest.mark.parametrize("dtype", MOST, ids=str)
def test_a_full_mask(dtype: torch.dtype) -> None:
    """Its result is that of the one dense call."""
    assert by_passes("24:0", dtype, 2)[0] == 0


@pytest.mark.parametrize("copied", range(3))
@pytest.mark.parametrize("dtype", MOST, ids=str)
def test_a_copied_operand_is_seen(dtype: torch.dtype, copied: int) -> None:
    """A clone of q, k or v in the body is more than the tests above allow."""
    grid = VideoGrid(FRAMES, 1, 36)
    numbers = spelled(passes(TileMask.parse("3:21", FRAMES), grid))
    inputs = operands(grid.tokens, 12, dtype)[:3]

    def clones() -> Sequence[Tensor]:
        given = [x.clone() if place == copied else x for place, x in enumerate(inputs)]
        return forward_by_passes(*given, numbers, 0.1, "")[:2]

    assert beside(clones, inputs)[0] > MOST[dtype]


@pytest.mark.parametrize("name", MASKS)
def test_the_triton_kernels(name: str) -> None:
    """Nothing beside output and log-sum-exp, and backward a float32 number a query and head."""
    grid = VideoGrid(FRAMES, 1, 1)
    mask, case = TileMask.parse(name, FRAMES), Case(grid, 1, WIDTH, 1, torch.float32, torch.device("cpu"))
    if triton.supports(case) is not None:
        pytest.skip(str(triton.supports(case)))
    from vdit_cli.attention.kernels import triton_backward, triton_forward

    q, k, v, grad = operands(grid.tokens, 1, torch.float32)
    walk = walk_of(passes(mask, grid))
    forward, found = beside(lambda: triton_forward.forward(q, k, v, walk), [q, k, v])
    assert forward == 0
    given = (grad, q, k, v, *found)
    backward, _ = beside(lambda: triton_backward.backward(*given, walk), given)
    assert backward <= 1.1 / WIDTH


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kernel", ["fa4", "sdpa", "triton"])
@pytest.mark.parametrize("name", MASKS[1:])
def test_on_a_gpu(name: str, kernel: str, batch: int) -> None:
    """By the allocator, at 86,400 tokens with 2 heads: at most the size of the output beside it."""
    grid = VideoGrid(FRAMES, 1, 3600)
    case = Case(grid, 2, WIDTH, batch, torch.bfloat16, GPU)
    reason = kernel_module(kernel).supports(case)
    if reason is not None:
        pytest.skip(reason)
    attend = bind(TileMask.parse(name, FRAMES), case, kernel)
    q, k, v = (torch.zeros(batch, grid.tokens, 2, WIDTH, dtype=torch.bfloat16, device=GPU) for _ in range(3))
    call = partial(attend.run, q, k, v, attend.passes)
    with torch.no_grad():
        call()  # a first call may try block sizes, which takes memory of its own
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        out = call()
        torch.cuda.synchronize()
    assert (torch.cuda.max_memory_allocated() - before - size(out)) / size(out) <= 1
