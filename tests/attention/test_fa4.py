"""flash-attn-4: when it is refused, how it is called, and its results on a GPU that has it."""

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.attention.cases import assert_right, inputs, outputs
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.dense import DENSE_CALLS, FA4, named
from vdit_cli.attention.kernels import fa4
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

CASE = Case(VideoGrid(8, 3, 5, text_after=4), 3, 96, 2, torch.bfloat16, torch.device("cuda"), needs_grad=True)
REAL = torch.cuda.is_available() and fa4.supports(CASE) is None


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the package and a GPU of compute capability 9.0."""
    monkeypatch.setattr(fa4, "version", lambda name: "4.0.0b36")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({}, None),
        ({"head_dim": 64, "dtype": torch.float16}, None),
        ({"device": torch.device("cpu")}, "runs on CUDA devices, not on cpu"),
        ({"dtype": torch.float32}, "float32 is none of"),
        ({"head_dim": 128}, None),
        ({"head_dim": 48}, "head width 48 is none of 64, 96, 128, the widths whose results were right on a GPU"),
        ({"head_dim": 256}, "head width 256 is none of 64, 96, 128"),
    ],
)
def test_what_it_takes(change: dict, rule: str | None) -> None:
    """Half types, the widths of `test_on_a_gpu`, CUDA."""
    reason = fa4.supports(replace(CASE, **change))
    assert reason is None if rule is None else rule in (reason or "")


@pytest.mark.usefixtures("hopper")
def test_auto_takes_the_next_kernel_at_a_width_that_is_wrong() -> None:
    """The head width of `shapes`: the reason is kept for the receipt."""
    attend = bind(TileMask.parse("1:7", 8), replace(CASE, head_dim=48))
    assert attend.kernel != "fa4" and "head width 48" in dict(attend.refused)["fa4"]


@pytest.mark.usefixtures("hopper")
def test_without_the_package_or_on_an_old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install; and which GPUs have a backward. The package is never imported for the answer."""
    before = set(sys.modules)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    assert fa4.supports(CASE) == "compute capability 8.6 is none of 9.x, 10.x, 11.x, 12.x"

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(fa4, "version", absent)
    assert fa4.supports(CASE) == "flash-attn-4 is not installed (pip install 'evdit[fa4]')"
    assert not {name for name in set(sys.modules) - before if name.startswith("flash_attn")}


def test_it_is_taken_only_where_it_is_asked_for() -> None:
    """Plain SDPA's table never picks it."""
    assert named("fa4") is FA4 and FA4 not in DENSE_CALLS
    assert named("chunked") is DENSE_CALLS[-1]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package of the same names, shapes and argument order as 4.0.0b36 that computes in plain torch on the CPU."""
    chunked, calls = DENSE_CALLS[-1], []

    def flash_attn_func(
        q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, return_lse: bool
    ) -> tuple[Tensor, Tensor]:
        assert return_lse and q.shape[2:] == k.shape[2:] == v.shape[2:]
        calls.append(f"{q.shape[0]}x{q.shape[1]} on {k.shape[1]}")
        out, lse, _ = chunked.forward(*(x.transpose(1, 2) for x in (q, k, v)), softmax_scale)
        return out.transpose(1, 2).contiguous(), lse

    def backward(
        q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, lse: Tensor, softmax_scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert lse.shape == (q.shape[0], q.shape[2], q.shape[1]) and lse.is_contiguous()
        assert out.shape == dout.shape == q.shape
        calls.append("backward")
        grad, *rest = (x.transpose(1, 2) for x in (dout, q, k, v, out))
        dq, dk, dv = chunked.backward(grad, *rest, lse, softmax_scale, ())
        return dq.transpose(1, 2), dk.transpose(1, 2), dv.transpose(1, 2)

    interface = ModuleType("flash_attn.cute.interface")
    vars(interface).update(flash_attn_func=flash_attn_func, _flash_attn_bwd=backward)
    for name in ("flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    monkeypatch.setattr(fa4, "supports", lambda case: None)
    return calls


@pytest.mark.numerical
@pytest.mark.parametrize("global_frames", [(0,), (0, 4), tuple(range(8))])
def test_passes_are_called_as_the_package_declares_and_joined(
    stand_in: list[str], global_frames: tuple[int, ...]
) -> None:
    """Output and gradients of the masked softmax, each frame against itself a call a video; dense is one call."""
    mask = TileMask(8, global_frames)
    given_ = inputs(mask, CASE.grid, 2, 3, 16)
    attend = bind(mask, replace(CASE, head_dim=16, dtype=torch.float32, device=torch.device("cpu")), "fa4")
    assert attend.kernel == "fa4"
    assert_right(outputs(attend, *given_), *given_, mask, CASE.grid, 5e-5)
    everyone, local = 15 * len(global_frames) + 4, 8 - len(global_frames)
    sparse = [f"2x{everyone} on 124", f"2x{124 - everyone} on {everyone}", *[f"{local}x15 on 15"] * 2]
    sparse += ["backward"] * 4
    assert stand_in == (["2x124 on 124", "backward"] if mask.is_dense else sparse)


@pytest.mark.numerical
@pytest.mark.gpu
@pytest.mark.skipif(not REAL, reason="needs flash-attn-4 and a GPU that it takes")
@pytest.mark.parametrize("width", fa4.WIDTHS)
@pytest.mark.parametrize("name", ["1:7", "2:6", "8:0"])
def test_on_a_gpu(width: int, name: str) -> None:
    """Output and gradients in bfloat16 at a length that is no multiple of any block."""
    mask, grid = TileMask.parse(name, 8), VideoGrid(8, 9, 15, text_after=11)
    given_ = inputs(mask, grid, 2, 3, width, dtype=torch.bfloat16, device="cuda")
    attend = bind(mask, replace(CASE, grid=grid, head_dim=width), "fa4")
    assert attend.kernel == "fa4"
    assert_right(outputs(attend, *given_), *given_, mask, grid, 2.5e-2)
