"""The Triton kernels at full size on a GPU: sampled query rows of all heads against float64, and the memory taken.

Trying all choices of block sizes takes longer than everything else here, so each test runs one of them; the benchmark
compares the one that was tuned with the reference before it times it.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.attention.cases import assert_right, inputs, outputs
from tests.attention.one_choice import one_choice_only
from tests.closeness import assert_close, assert_within
from vdit_cli.attention.bind import Attend, Case, bind
from vdit_cli.attention.kernels import triton
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

GPU = torch.device("cuda")
HAS_GPU = torch.cuda.is_available() and triton.refuses_device(GPU) is None
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device that the kernels run on")]

ROWS = 256
FULL = [  # frames, tokens a frame, text after, heads, head width, global frames
    (8, 3600, 0, 24, 96, 1),
    (8, 3600, 0, 24, 96, 2),
    (24, 3600, 0, 24, 96, 3),
    (13, 1350, 226, 48, 64, 3),
    (21, 1560, 0, 40, 128, 3),
]
RIGHT = {torch.float16: 5e-3, torch.bfloat16: 2e-2}
EVERY_WIDTH = [(width, torch.bfloat16) for width in range(16, 129, 16)]
SOME_WIDTHS = [(width, dtype) for dtype in (torch.float16, torch.float32) for width in (48, 96)]


@pytest.fixture(autouse=True)
def one_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tuning."""
    one_choice_only(monkeypatch)
    yield


def drawn(grid: VideoGrid, heads: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the output's gradient, normal, drawn on the GPU: 200 million numbers on a CPU take a second."""
    generator = torch.Generator(GPU).manual_seed(0)
    shape = (1, grid.tokens, heads, width)
    made = [torch.randn(shape, generator=generator, device=GPU, dtype=dtype) for _ in range(4)]
    return [x.requires_grad_() for x in made[:3]] + [made[3]]


def bound(mask: TileMask, grid: VideoGrid, heads: int, width: int, dtype: torch.dtype) -> Attend:
    """The mask on these kernels and no other."""
    attend = bind(mask, Case(grid, heads, width, 1, dtype, GPU, needs_grad=True), "triton")
    assert attend.kernel == "triton"
    return attend


def truth_of(
    rows: Tensor, q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: TileMask, grid: VideoGrid
) -> tuple[Tensor, Tensor]:
    """Output and dq of `rows`, (rows, H, D) in float64, head by head, from the definition of the mask."""
    frame = torch.tensor([-1 if (f := grid.frame_of(token)) is None else f for token in range(grid.tokens)], device=GPU)
    is_everyone = (frame < 0) | torch.isin(frame, torch.tensor(mask.global_frames, device=GPU))
    kept = (frame[rows, None] == frame[None]) | is_everyone[rows, None] | is_everyone[None]
    outs, changes = [], []
    for head in range(q.shape[2]):
        queries = q[0, rows, head].double().requires_grad_()
        scores = (queries @ k[0, :, head].double().T) * q.shape[-1] ** -0.5
        out = scores.masked_fill(~kept, float("-inf")).softmax(-1) @ v[0, :, head].double()
        changes.append(torch.autograd.grad(out, queries, grad[0, rows, head].double())[0])
        outs.append(out.detach())
    return torch.stack(outs, 1), torch.stack(changes, 1)


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("entry", "dtype"), [*((each, torch.bfloat16) for each in FULL), (FULL[0], torch.float16)], ids=str
)
def test_full_size(entry: tuple, dtype: torch.dtype) -> None:
    """Output and dq of 256 rows, the first and last of every frame among them."""
    frames, frame_tokens, text, heads, width, k_global = entry
    mask, grid = TileMask.parse(f"{k_global}:{frames - k_global}", frames), VideoGrid(frames, 1, frame_tokens, 0, text)
    q, k, v, grad = drawn(grid, heads, width, dtype)
    found = outputs(bound(mask, grid, heads, width, dtype), q, k, v, grad)
    ends = [end for f in range(frames) for end in (grid.frame_range(f).start, grid.frame_range(f).stop - 1)]
    others = torch.randperm(grid.tokens, generator=torch.Generator().manual_seed(0))[: ROWS - len(ends)]
    rows = torch.cat((torch.tensor(ends), others)).to(GPU)
    given = [x.detach() for x in (q, k, v)]
    right, dropped = (truth_of(rows, *given, grad, each, grid) for each in (mask, TileMask.dense(frames)))
    for name, truth, wrong in zip(("out", "dq"), right, dropped, strict=True):
        size = truth.abs().max()
        assert_close(found[name][0, rows] / size, truth / size, atol=RIGHT[dtype], planted=wrong / size, told=name)
        errors = [((x - truth).abs().mean() / size).item() for x in (found[name][0, rows], wrong)]
        assert_within(errors[0], RIGHT[dtype] / 10, planted=errors[1], told=name)
    assert all(x.isfinite().all() for x in found.values())


@pytest.mark.numerical
@pytest.mark.parametrize(("width", "dtype"), [*EVERY_WIDTH, *SOME_WIDTHS], ids=str)
def test_whole_gradients_at_2048_tokens(width: int, dtype: torch.dtype) -> None:
    """Every head width; with NaN in the memory that outputs are written to."""
    mask, grid = TileMask(8, (0, 4)), VideoGrid(8, 5, 49, 11, 77)
    given = inputs(mask, grid, 1, 2, width, dtype=dtype, device="cuda")
    attend = bound(mask, grid, 2, width, dtype)
    outputs(attend, *given)
    spoiled = [torch.full((grid.tokens, 2, width), float("nan"), device=GPU, dtype=dtype) for _ in range(8)]
    del spoiled  # the caching allocator hands the same memory out again
    right = 1e-4 if dtype == torch.float32 else RIGHT[dtype]
    assert_right(outputs(attend, *given), *given, mask, grid, right)


def test_the_same_digits_twice() -> None:
    """No two programs add to one place: forward and backward are deterministic."""
    mask, grid = TileMask(8, (0,)), VideoGrid(8, 1, 1350)
    given = inputs(mask, grid, 1, 4, 96, dtype=torch.bfloat16, device="cuda")
    attend = bound(mask, grid, 4, 96, torch.bfloat16)
    one, other = outputs(attend, *given), outputs(attend, *given)
    assert all(torch.equal(one[part], other[part]) for part in one)


def test_memory_at_86400_tokens() -> None:
    """Forward takes its output and log-sum-exp and nothing else: at most twice the size of the output."""
    mask, grid = TileMask.parse("3:21", 24), VideoGrid(24, 1, 3600)
    q, k, v = (torch.randn(1, grid.tokens, 24, 96, device=GPU, dtype=torch.bfloat16) for _ in range(3))
    attend = bound(mask, grid, 24, 96, torch.bfloat16)
    attend.run(q, k, v, attend.passes)  # tunes
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = attend.run(q, k, v, attend.passes)
    assert torch.cuda.max_memory_allocated() - before <= 2 * out.numel() * out.element_size()
