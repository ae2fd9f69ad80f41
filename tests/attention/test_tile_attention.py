"""Every kernel against the masked float64 reference: outputs and all gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.cases import DEVICES, RAGGED, assert_right, assert_right_to_rounding, inputs, outputs
from tests.attention.one_choice import one_choice_only
from tests.closeness import assert_close
from tests.tiles.strategies import masks_on_grids
from vdit_cli.attention.bind import KERNELS, Case, kernel_module, tile_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask


def kernels_here() -> list[tuple[str, str]]:
    """Each kernel with each device that it runs on; FlexAttention compiles for every shape, so test_flex has few."""
    cases = {device: Case(VideoGrid(8, 4, 4), 2, 48, 1, torch.bfloat16, torch.device(device)) for device in DEVICES}
    names = [name for name in KERNELS if name != "flex"]
    return [
        (name, device) for name in names for device in DEVICES if kernel_module(name).supports(cases[device]) is None
    ]


pytestmark = [pytest.mark.numerical, pytest.mark.parametrize(("kernel", "device"), kernels_here())]


@pytest.fixture(autouse=True)
def one_choice(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU no tuning: it would take longer than everything else here."""
    if device == "cuda":
        one_choice_only(monkeypatch)


EPS = 8 * torch.finfo(torch.float32).eps
"""What a float32 sum of a head's products may be off by, of their sum without signs."""
LONG = 2000
"""Tokens from which a shape runs in float32 only."""
INTERPRETED = ("triton", "cpu")
"""A kernel and device that are slow: from INTERPRETED_LONG tokens on it runs in float32 only."""
INTERPRETED_LONG = 100
RIGHT = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error allowed in a type; that of half types is their own rounding of inputs of size 1."""


def case_of(entry: tuple) -> tuple[TileMask, VideoGrid, tuple[int, int, int]]:
    """Mask, grid and (B, H, D) of an entry of RAGGED."""
    frames, global_frames, (rows, cols), text, *sizes = entry
    return TileMask(frames, global_frames), VideoGrid(frames, rows, cols, *text), tuple(sizes)


@pytest.mark.parametrize("entry", RAGGED, ids=str)
@pytest.mark.parametrize("dtype", RIGHT, ids=str)
def test_ragged_shapes(kernel: str, device: str, entry: tuple, dtype: torch.dtype) -> None:
    """S = 1, 63, 1350; k = 1, k = F, F = 1; text before and after; batches; head widths of no power of two."""
    mask, grid, sizes = case_of(entry)
    long = INTERPRETED_LONG if (kernel, device) == INTERPRETED else LONG
    if grid.tokens > long and dtype != torch.float32:
        return
    given_ = inputs(mask, grid, *sizes, dtype=dtype, device=device)
    found = outputs(lambda q, k, v: tile_attention(q, k, v, mask, grid, kernel), *given_)
    assert {x.dtype for x in found.values()} == {dtype}
    assert_right(found, *given_, mask, grid, RIGHT[dtype])


@settings(max_examples=60, deadline=None)
@given(masks_on_grids(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 20))
def test_any_mask_on_any_grid(kernel: str, device: str, case: tuple, batch: int, heads: int, width: int) -> None:
    """Right in float32 for whatever hypothesis draws."""
    mask, grid = case
    given_ = inputs(mask, grid, batch, heads, width, device=device)
    found = outputs(lambda q, k, v: tile_attention(q, k, v, mask, grid, kernel), *given_)
    assert_right(found, *given_, mask, grid, RIGHT[torch.float32])


@pytest.mark.parametrize("entry", RAGGED[:-1], ids=str)
def test_layouts_do_not_matter(kernel: str, device: str, entry: tuple) -> None:
    """q, k, v sliced from one product, transposed, with a strided head and expanded over the batch: equal numbers."""
    mask, grid, sizes = case_of(entry)
    if (kernel, device) == INTERPRETED:  # test_triton.py has layouts that its time allows
        return
    q, k, v, grad = inputs(mask, grid, *sizes, device=device)
    plain = outputs(lambda *xs: tile_attention(*xs, mask, grid, kernel), q, k, v, grad)
    packed = torch.stack((q, k, v), 2).detach()
    layouts = {
        "packed": [packed[:, :, i] for i in range(3)],
        "transposed": [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)],
        "strided head": [x.detach().repeat_interleave(2, -1)[..., ::2] for x in (q, k, v)],
        "head first": [x.detach().movedim(-1, 0).contiguous().movedim(0, -1) for x in (q, k, v)],
    }
    for name, xs in layouts.items():
        leaves = [x.requires_grad_() for x in xs]
        found = outputs(
            lambda *ys: tile_attention(*ys, mask, grid, kernel),
            *leaves,
            grad.transpose(1, 2).contiguous().transpose(1, 2),
        )
        assert_close(found, plain, told=name, planted={part: 2 * x for part, x in plain.items()})
    one = [x.detach()[:1] for x in (q, k, v)]
    spread = tile_attention(*(x.expand(4, -1, -1, -1) for x in one), mask, grid, kernel)
    assert_close(spread, tile_attention(*one, mask, grid, kernel).expand(4, -1, -1, -1))


@pytest.mark.parametrize("text", [(0, 0), (3, 2)])
def test_a_full_mask_is_plain_sdpa_bit_for_bit(kernel: str, device: str, text: tuple[int, int]) -> None:
    """Output and gradients, for F:0 and for the mask that leaves one frame local and so keeps everything.

    Kernels of another make than torch's give its numbers but for rounding.
    """
    grid = VideoGrid(4, 3, 5, *text)
    for mask in (TileMask.dense(4), TileMask(4, (0, 2, 3))):
        q, k, v, grad = inputs(mask, grid, 2, 3, 16, device=device)
        found = outputs(lambda *xs, mask=mask: tile_attention(*xs, mask, grid, kernel), q, k, v, grad)
        plain = outputs(
            lambda *xs: F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in xs)).transpose(1, 2), q, k, v, grad
        )
        if kernel == "sdpa":
            assert all(torch.equal(found[part], plain[part]) for part in plain)
        else:
            assert_close(found, plain)


ADVERSARIAL = {
    "large logits": lambda q, k, v: (q * 12, k * 12, v),
    "one dominant key": lambda q, k, v: (
        q.abs(),
        k * 0.1 + 40 * (torch.arange(k.shape[1], device=k.device) == 5)[:, None, None],
        v,
    ),
    "equal keys": lambda q, k, v: (q, k[:, :1].expand_as(k), v),
    "zero queries": lambda q, k, v: (q * 0, k, v),
    "tiny values": lambda q, k, v: (q, k, v * 1e-20),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
@pytest.mark.parametrize("global_frames", [(0,), (0, 4)])
def test_adversarial_inputs(kernel: str, device: str, name: str, global_frames: tuple[int, ...]) -> None:
    """Errors stay within what rounding the scores costs, however large these are."""
    mask, grid = TileMask(8, global_frames), VideoGrid(8, 3, 5, text_after=2)
    q, k, v, grad = inputs(mask, grid, 1, 2, 32, device=device)
    q, k, v = (x.detach().contiguous().requires_grad_() for x in ADVERSARIAL[name](q, k, v))
    found = outputs(lambda *xs: tile_attention(*xs, mask, grid, kernel), q, k, v, grad)
    assert_right_to_rounding(found, q, k, v, grad, mask, grid, EPS)


def test_gradients_by_finite_differences(kernel: str, device: str) -> None:
    """torch's own check in float64, through the gather and the passes."""
    mask, grid = TileMask(4, (0, 2)), VideoGrid(4, 1, 2, text_after=1)
    given_ = inputs(mask, grid, 2, 2, 3, dtype=torch.float64, device=device)[:3]
    assert torch.autograd.gradcheck(lambda *xs: tile_attention(*xs, mask, grid, kernel), given_)


def test_only_some_gradients_are_wanted(kernel: str, device: str) -> None:
    """A frozen key projection: gradients of q and v only."""
    mask, grid = TileMask(4, (0,)), VideoGrid(4, 2, 2)
    q, k, v, grad = inputs(mask, grid, 1, 2, 8, device=device)
    wanted = outputs(lambda *xs: tile_attention(*xs, mask, grid, kernel), q, k, v, grad)
    out = tile_attention(q, k.detach(), v, mask, grid, kernel)
    dq, dv = torch.autograd.grad(out, (q, v), grad)
    assert torch.equal(dq, wanted["dq"]) and torch.equal(dv, wanted["dv"])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(kernel: str, device: str, mode: type) -> None:
    """The same output, attached to nothing, and no autograd node."""
    mask, grid = TileMask(8, (0, 4)), VideoGrid(8, 3, 3, text_after=2)
    q, k, v, _ = inputs(mask, grid, 1, 2, 16, device=device)
    with mode():
        out = tile_attention(q, k, v, mask, grid, kernel)
    assert not out.requires_grad
    assert torch.equal(out, tile_attention(q, k, v, mask, grid, kernel))


def test_inputs_stay_as_they_are(kernel: str, device: str) -> None:
    """Neither forward nor backward writes into q, k, v or the gradient."""
    mask, grid = TileMask(4, (0,)), VideoGrid(4, 2, 2)
    given_ = inputs(mask, grid, 1, 2, 8, device=device)
    before = [x.detach().clone() for x in given_]
    outputs(lambda *xs: tile_attention(*xs, mask, grid, kernel), *given_)
    assert all(torch.equal(x, y) for x, y in zip(given_, before, strict=True))
