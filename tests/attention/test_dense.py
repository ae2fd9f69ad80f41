"""Each dense call against softmax in float64: output, log-sum-exp, and the backward of a part of the keys."""

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.closeness import assert_close
from vdit_cli.attention import dense
from vdit_cli.attention.dense import DENSE_CALLS, DenseCall

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RIGHT = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest error, absolute and relative; that of half types is their own rounding of inputs of size 1."""


def softmax(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp in float64."""
    scores = q.double() @ k.double().transpose(-1, -2) * scale
    return scores.softmax(-1) @ v.double(), scores.logsumexp(-1)


def cases() -> list:
    """Each call with each type and device that it takes on this machine."""
    found = []
    for call in DENSE_CALLS:
        for dtype in RIGHT:
            for device in dict.fromkeys(("cpu", DEVICE)):
                like = torch.zeros(1, 1, 8, 16, dtype=dtype, device=device)
                if call.takes(like, like, like):
                    found.append(pytest.param(call, dtype, device, id=f"{call.name}-{dtype}-{device}"))
    return found


@pytest.mark.numerical
@pytest.mark.parametrize(("call", "dtype", "device"), cases())
@pytest.mark.parametrize("sizes", [(1, 1), (63, 130), (130, 7), (5, 1), (300, 700)])
def test_a_dense_call(call: DenseCall, dtype: torch.dtype, device: str, sizes: tuple[int, int]) -> None:
    """Two halves of the keys, each with its own backward under the joint output and lse, give the whole gradient."""
    torch.manual_seed(0)
    queries, keys = sizes
    q, grad = (torch.randn(2, queries, 3, 16, dtype=dtype, device=device).transpose(1, 2) for _ in range(2))
    k, v = (torch.randn(2, keys, 3, 16, dtype=dtype, device=device).transpose(1, 2) for _ in range(2))
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    truth, truth_lse = softmax(*exact, 0.3)
    out, lse, _ = call.forward(q, k, v, 0.3)
    assert (out.shape, lse.shape, out.dtype) == (q.shape, q.shape[:-1], dtype)
    assert_close(out, truth, atol=RIGHT[dtype], rtol=RIGHT[dtype])
    assert_close(lse, truth_lse, atol=RIGHT[dtype])
    wanted = torch.autograd.grad(truth, exact, grad.double())
    cut = max(1, keys // 3)
    parts = [(k[:, :, :cut], v[:, :, :cut]), (k[:, :, cut:], v[:, :, cut:])] if keys > 1 else [(k, v)]
    found = [call.backward(grad, q, *part, out, lse, 0.3, call.forward(q, *part, 0.3)[-1]) for part in parts]
    dq, dk, dv = ([each[i].to(lse.dtype) for each in found] for i in range(3))
    size = max(x.abs().max().item() for x in wanted)  # one key has no gradient but that of its value
    joined, wanted = ([x / size for x in each] for each in ((sum(dq), torch.cat(dk, 2), torch.cat(dv, 2)), wanted))
    assert_close(joined, wanted, atol=2 * RIGHT[dtype], planted=[2 * x for x in wanted])


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
@pytest.mark.parametrize("sizes", [(63, 130), (1, 5), (64, 32)])
def test_cuda_operators_are_called_as_torch_declares_them(name: str, sizes: tuple[int, int]) -> None:
    """Arguments and shapes of the calls that need a GPU, on tensors without storage."""
    call = next(each for each in DENSE_CALLS if each.name == name)
    q, k = (torch.empty(2, n, 3, 16, dtype=torch.bfloat16, device="meta").transpose(1, 2) for n in sizes)
    out, lse, kept = call.forward(q, k, k, 0.3)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, q.shape[:-1], torch.float32)
    assert [x.shape for x in call.backward(out, q, k, k, out, lse, 0.3, kept)] == [q.shape, k.shape, k.shape]


@pytest.mark.numerical
def test_the_chunked_call_never_holds_all_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for ten scores it works row by row and gives the same."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 30, 8) for _ in range(3))
    monkeypatch.setattr(dense, "CHUNK_SCORES", 10)
    assert len(dense._chunks(q, k)) == 30
    out, lse, _ = DENSE_CALLS[-1].forward(q, k, v, 0.3)
    truth, truth_lse = softmax(q, k, v, 0.3)
    assert_close(out, truth, atol=1e-5)
    assert_close(lse, truth_lse, atol=1e-5)


def test_a_call_must_take_all_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass that an operator refuses moves all of them to the next."""
    short = dataclasses.replace(DENSE_CALLS[0], takes=lambda q, k, v: k.shape[2] > 2)
    monkeypatch.setattr(dense, "DENSE_CALLS", (short, DENSE_CALLS[-1]))
    wide, narrow = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 2, 8)
    assert dense.pick([(wide, wide, wide)]) is short
    assert dense.pick([(wide, wide, wide), (wide, narrow, narrow)]) is DENSE_CALLS[-1]


def test_the_last_call_takes_everything() -> None:
    """pick never comes back empty."""
    like = torch.zeros(1, 1, 1, 1, dtype=torch.int8)
    assert dense.pick([(like, like, like)]) is DENSE_CALLS[-1]
