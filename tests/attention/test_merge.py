"""Joining by log-sum-exp, and cutting into parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.closeness import assert_close
from vdit_cli.attention.merge import cut, join, uncut


@pytest.mark.numerical
@pytest.mark.parametrize("shift", [0, 30, -30, 500, -500])
def test_join_is_attention_over_both_sets(shift: float) -> None:
    """Softmax over ten keys from that over four and that over six, however far apart their scores are."""
    torch.manual_seed(0)
    scores, v = torch.randn(2, 5, 3, 10, dtype=torch.float64), torch.randn(10, 7, dtype=torch.float64)
    scores[..., 4:] += shift
    halves = [(s.softmax(-1) @ x, s.logsumexp(-1)) for s, x in ((scores[..., :4], v[:4]), (scores[..., 4:], v[4:]))]
    out, lse = join(*halves)
    assert_close(out, scores.softmax(-1) @ v)
    assert_close(lse, scores.logsumexp(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_join_keeps_the_type_and_writes_where_it_is_told(dtype: torch.dtype) -> None:
    """Half types are weighed in float32; the log-sum-exp is never a half."""
    exact = torch.promote_types(dtype, torch.float32)
    one, other = ((torch.full((1, 2, 1, 2), x, dtype=dtype), torch.zeros(1, 2, 1, dtype=exact)) for x in (1.0, 3.0))
    out, lse = join(one, other)
    assert (out.dtype, lse.dtype) == (dtype, exact)
    assert (out == 2).all() and (lse == torch.tensor(2.0, dtype=exact).log()).all()
    whole = torch.zeros(1, 4, 1, 2, dtype=dtype), torch.zeros(1, 4, 1, dtype=exact)
    join(one, other, into=(whole[0][:, 1:3], whole[1][:, 1:3]))
    assert torch.equal(whole[0][:, 1:3], out) and torch.equal(whole[1][:, 1:3], lse)
    assert not whole[0][:, ::3].any() and not whole[1][:, ::3].any()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_uncut_undoes_cut(batch: int, parts: int, each: int, start: int) -> None:
    """Part p of video b is row b * P + p, heads before tokens."""
    x = torch.arange(batch * (start + parts * each) * 2 * 3).reshape(batch, start + parts * each, 2, 3)
    places = range(start, start + parts * each)
    pieces = cut(x, places, parts)
    assert pieces.shape == (batch * parts, 2, each, 3)
    for b in range(batch):
        for p in range(parts):
            own = x[b, start + p * each : start + (p + 1) * each].transpose(0, 1)
            assert torch.equal(pieces[b * parts + p], own)
    assert torch.equal(uncut(pieces, parts), x[:, start:])


def test_one_video_is_cut_without_a_copy() -> None:
    """The own-frame pass of batch 1 reads its operands in place."""
    x = torch.zeros(1, 12, 2, 3)
    assert cut(x, range(4, 12), 4).data_ptr() == x[:, 4:].data_ptr()
