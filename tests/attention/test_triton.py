"""The Triton kernels, in the interpreter where there is no GPU: output and all gradients against the float64 reference.

Float32 within RIGHT of the truth, absolute, and relative where a value exceeds 1.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.attention.cases import assert_right, assert_right_to_rounding, inputs, outputs
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.kernels import triton
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import Pass, passes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASE = Case(VideoGrid(8, 2, 3), 2, 48, 1, torch.float32, torch.device(DEVICE))
RIGHT = 2e-5
EPS = 8 * torch.finfo(torch.float32).eps
HALVES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}

pytestmark = pytest.mark.skipif(triton.supports(CASE) is not None, reason=str(triton.supports(CASE)))

SHAPES = [  # frames, global frames, rows x cols, text before and after, batch, heads, head width
    (1, (0,), (1, 1), (0, 0), 1, 1, 32),
    (1, (0,), (3, 5), (2, 4), 2, 1, 16),
    (8, (0,), (1, 1), (0, 0), 1, 2, 48),
    (8, (0, 4), (1, 1), (2, 3), 2, 1, 64),
    (3, (1,), (7, 9), (0, 5), 1, 2, 96),
    (3, (0,), (7, 10), (3, 0), 2, 1, 80),
    (3, (2,), (7, 10), (1, 1), 1, 1, 128),
    (3, (0,), (8, 8), (0, 0), 1, 1, 32),
    (8, tuple(range(8)), (3, 5), (3, 2), 1, 1, 112),
]


@pytest.fixture(autouse=True)
def scratch_of_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Memory that is asked for empty holds NaN, so that a place nobody writes is seen; the sizes in bytes asked for."""
    asked: list[int] = []

    def of_nan(make: object) -> object:
        def made(*args: object, **options: object) -> Tensor:
            x = make(*args, **options)  # type: ignore[operator]
            asked.append(x.numel() * x.element_size())
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, of_nan(getattr(torch, name)))
    yield asked


def case_of(entry: tuple) -> tuple[TileMask, VideoGrid, tuple[int, int, int]]:
    """Mask, grid and (B, H, D) of an entry of SHAPES."""
    frames, global_frames, (rows, cols), text, *sizes = entry
    return TileMask(frames, global_frames), VideoGrid(frames, rows, cols, *text), tuple(sizes)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: TileMask, grid: VideoGrid) -> Tensor:
    """Bound to these kernels and no other."""
    attend = bind(mask, Case(grid, q.shape[2], q.shape[3], q.shape[0], q.dtype, q.device), "triton")
    assert (attend.kernel, attend.refused) == ("triton", ())
    return attend(q, k, v)


def outputs_of(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, mask: TileMask, grid: VideoGrid) -> dict[str, Tensor]:
    """Output and gradients of these kernels."""
    return outputs(lambda *xs: attend(*xs, mask, grid), q, k, v, grad)


@pytest.mark.numerical
@pytest.mark.parametrize("entry", SHAPES, ids=str)
def test_shapes(entry: tuple) -> None:
    """S = 1, 63, 64, 70; F = 1, 3, 8; k = 1 to F; text before and after; a batch; widths of one to three parts."""
    mask, grid, sizes = case_of(entry)
    given = inputs(mask, grid, *sizes, device=DEVICE)
    assert_right(outputs_of(*given, mask, grid), *given, mask, grid, RIGHT)


@pytest.mark.numerical
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    """Sums in float32, results in the type of the operands, wrong by no more than its rounding."""
    mask, grid = TileMask(3, (1,)), VideoGrid(3, 4, 9, 0, 2)
    given = inputs(mask, grid, 1, 2, 48, dtype=dtype, device=DEVICE)
    found = outputs_of(*given, mask, grid)
    assert {x.dtype for x in found.values()} == {dtype}
    assert_right(found, *given, mask, grid, HALVES[dtype])


ADVERSARIAL = {
    "large logits": lambda q, k, v: (q * 6, k * 6, v),
    "very large logits, very low": lambda q, k, v: (q.abs() * 30, -k.abs() * 30, v),
    "the last key dominates": lambda q, k, v: (
        q.abs(),
        k * 0.1 + 40 * (torch.arange(k.shape[1], device=k.device) == k.shape[1] - 1)[:, None, None],
        v,
    ),
    "zero queries": lambda q, k, v: (q * 0, k, v),
}


@pytest.mark.numerical
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy: what rows past the end hold is never written
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_inputs(name: str) -> None:
    """Float32 errors stay within what rounding the scores costs, however large these are."""
    mask, grid = TileMask(3, (0,)), VideoGrid(3, 5, 7, text_after=2)
    q, k, v, grad = inputs(mask, grid, 1, 2, 32, device=DEVICE)
    q, k, v = (x.detach().contiguous().requires_grad_() for x in ADVERSARIAL[name](q, k, v))
    assert_right_to_rounding(outputs_of(q, k, v, grad, mask, grid), q, k, v, grad, mask, grid, EPS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_a_mask_drops_is_never_read() -> None:
    """NaN in another local frame, its queries, keys and values, stays in that frame."""
    mask, grid = TileMask(3, (0,)), VideoGrid(3, 5, 7)
    q, k, v, _ = inputs(mask, grid, 1, 1, 48, device=DEVICE)
    clean = attend(q, k, v, mask, grid)
    q, k, v = (x.detach().clone() for x in (q, k, v))
    for x in (q, k, v):
        x[:, 70:] = float("nan")
    found = attend(q, k, v, mask, grid)
    assert torch.equal(found[:, 35:70], clean[:, 35:70]) and found[:, 70:].isnan().all()


def test_layouts_and_wide_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of one product, heads first, a strided head, a gradient of stride zero, 64-bit offsets: equal digits."""
    mask, grid = TileMask(3, (1,)), VideoGrid(3, 3, 5, 1, 1)
    q, k, v, grad = inputs(mask, grid, 2, 2, 16, device=DEVICE)
    grad = grad[:1, :1, :1, :1].expand_as(grad)
    plain = outputs(lambda *xs: attend(*xs, mask, grid), q, k, v, grad.contiguous())
    packed = torch.stack((q, k, v), 2).detach()
    layouts = [
        [packed[:, :, i] for i in range(3)],
        [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        [x.detach().repeat_interleave(2, -1)[..., ::2] for x in (q, k, v)],
    ]
    for xs in layouts:
        found = outputs(lambda *ys: attend(*ys, mask, grid), *(x.requires_grad_() for x in xs), grad)
        assert all(torch.equal(found[part], plain[part]) for part in plain)
    for module in ("forward", "backward"):
        monkeypatch.setattr(f"vdit_cli.attention.kernels.triton_{module}.is_wide", lambda *xs: True)
    wide = outputs(lambda *xs: attend(*xs, mask, grid), q, k, v, grad)
    assert all(torch.equal(wide[part], plain[part]) for part in plain)


def test_only_some_gradients_are_wanted(scratch_of_nan: list[int]) -> None:
    """Those of frozen operands are not computed."""
    mask, grid = TileMask(4, (0,)), VideoGrid(4, 2, 2)
    q, k, v, grad = inputs(mask, grid, 1, 2, 16, device=DEVICE)
    wanted = outputs(lambda *xs: attend(*xs, mask, grid), q, k, v, grad)
    for frozen in (0, 1, 2):
        operands = [x.detach() if i == frozen else x for i, x in enumerate((q, k, v))]
        rest = [i for i in range(3) if i != frozen]
        found = torch.autograd.grad(attend(*operands, mask, grid), [operands[i] for i in rest], grad)
        assert all(torch.equal(x, wanted[("dq", "dk", "dv")[i]]) for x, i in zip(found, rest, strict=True))


def test_memory_is_output_and_log_sum_exp(scratch_of_nan: list[int]) -> None:
    """Nothing else is asked for going forward, whatever the mask."""
    mask, grid = TileMask(8, (0, 4)), VideoGrid(8, 2, 2)
    q, k, v, _ = inputs(mask, grid, 1, 2, 16, device=DEVICE)
    scratch_of_nan.clear()
    triton.run(q, k, v, passes(mask, grid))
    assert scratch_of_nan == [q.numel() * 4, q.numel() // 16 * 4]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float64 is none of"),
        ({"head_dim": 40}, "head width 40 is no multiple of 16 from 16 to 128"),
        ({"head_dim": 144}, "head width 144"),
        ({"device": torch.device("meta")}, "runs on CUDA devices, not on meta"),
    ],
)
def test_what_it_refuses(change: dict, reason: str) -> None:
    """Each with its reason."""
    assert reason in str(triton.supports(dataclasses.replace(CASE, **change)))


def test_where_triton_is_missing_or_compiles_for_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Triton; an old GPU; a CPU without the interpreter."""
    from vdit_cli.attention.kernels import triton_walk

    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    refuses = triton.refuses_device.__wrapped__
    monkeypatch.setattr(triton_walk, "INTERPRETED", False)
    assert "TRITON_INTERPRET=1" in refuses(cpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert refuses(gpu) == "compute capability 7.5 is below 8.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert refuses(gpu) is None
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert refuses(gpu) == "Triton is not installed"


def test_passes_of_no_tile_mask_are_refused() -> None:
    """The kernels know one pattern; any other list of passes would be computed wrong."""
    from vdit_cli.attention.kernels.triton_walk import widths
    from vdit_cli.attention.kernels.walk import walk_of

    everything, first, rest = range(10), range(4), range(4, 10)
    for wrong in (
        (Pass(first, (everything,)),),
        (Pass(first, (everything,)), Pass(rest, (everything,))),
        (Pass(first, (everything,)), Pass(rest, (first,)), Pass(rest, (rest,), parts=4)),
        (Pass(first, (first, rest)), Pass(rest, (first,)), Pass(rest, (rest,), parts=2)),
    ):
        with pytest.raises(ValueError, match="not those of a tile mask"):
            walk_of(wrong)
    with pytest.raises(ValueError, match="head width 40"):
        widths(40)
    assert [widths(16 * i) for i in (1, 3, 6, 7, 8)] == [
        (16, 0, 0),
        (32, 16, 0),
        (64, 32, 0),
        (64, 32, 16),
        (128, 0, 0),
    ]
