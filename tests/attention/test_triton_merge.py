"""The Triton kernel that joins two attentions, against softmax over both sets of keys."""

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.attention import merge
from vdit_cli.attention.kernels import triton
from vdit_cli.attention.kernels.triton import join, joins

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFUSED = triton.refuses_device(torch.device(DEVICE))
pytestmark = [pytest.mark.numerical, pytest.mark.skipif(REFUSED is not None, reason=str(REFUSED))]


@pytest.mark.parametrize("shift", [0, 30, -30, 500, -500])
def test_join_is_attention_over_both_sets(shift: float) -> None:
    """Softmax over ten keys from that over four and that over six, however far apart their scores are."""
    torch.manual_seed(0)
    scores, v = torch.randn(2, 5, 3, 10, dtype=torch.float64), torch.randn(10, 7, dtype=torch.float64)
    scores[..., 4:] += shift
    halves = [(s.softmax(-1) @ x, s.logsumexp(-1)) for s, x in ((scores[..., :4], v[:4]), (scores[..., 4:], v[4:]))]
    one, other = ((out.float().to(DEVICE), lse.float().to(DEVICE)) for out, lse in halves)
    out, lse = join(one, other)
    assert_close(out, scores.softmax(-1) @ v, atol=1e-5, rtol=1e-5)
    assert_close(lse, scores.logsumexp(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_join_writes_where_it_is_told(dtype: torch.dtype) -> None:
    """Into a slice of a whole, into its own first operand, heads first and an expanded log-sum-exp: torch's numbers."""
    torch.manual_seed(0)
    one, other = (
        (torch.randn(2, 3, 13, 48).to(DEVICE, dtype).transpose(1, 2), torch.randn(2, 1, 3, device=DEVICE))
        for _ in range(2)
    )
    one, other = ((out, lse.expand(2, 13, 3)) for out, lse in (one, other))
    wide = [(out.double(), lse.double()) for out, lse in (one, other)]
    merge.join(*wide)
    expected, expected_lse = wide[0]
    whole = torch.zeros(2, 20, 3, 48, dtype=dtype, device=DEVICE), torch.zeros(2, 20, 3, device=DEVICE)
    into = whole[0][:, 4:17], whole[1][:, 4:17]
    join(one, other, into=into)
    step = torch.finfo(dtype).eps
    assert_close(into[0], expected, atol=4 * step, rtol=4 * step)
    assert_close(into[1], expected_lse, atol=1e-5, rtol=1e-5)
    assert not whole[0][:, :4].any() and not whole[0][:, 17:].any() and not whole[1][:, :4].any()
    own = one[0].clone(), one[1].clone()
    join(own, other, into=own)
    assert torch.equal(own[0], into[0]) and torch.equal(own[1], into[1])


def test_the_merge_of_passes_uses_it_on_a_gpu_only() -> None:
    """In the interpreter torch's own operators are faster."""
    part = torch.zeros(1, 2, 1, 16, device=DEVICE), torch.zeros(1, 2, 1, device=DEVICE)
    assert joins(part, part) == (DEVICE == "cuda")
    double = part[0].double(), part[1].double()
    assert not joins(double, double) and not joins(part, double)
