"""Joining by log-sum-exp, and cutting into pieces."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.closeness import assert_close
from vdit_cli.attention.merge import JOINED_AT_ONCE, join, pieces
from vdit_cli.tiles.passes import Pass


@pytest.mark.numerical
@pytest.mark.parametrize("shift", [0, 30, -30, 500, -500])
def test_join_is_attention_over_both_sets(shift: float) -> None:
    """Softmax over ten keys from that over four and that over six, however far apart their scores are."""
    torch.manual_seed(0)
    scores, v = torch.randn(2, 5, 3, 10, dtype=torch.float64), torch.randn(10, 7, dtype=torch.float64)
    scores[..., 4:] += shift
    halves = [(s.softmax(-1) @ x, s.logsumexp(-1)) for s, x in ((scores[..., :4], v[:4]), (scores[..., 4:], v[4:]))]
    join(*halves)
    out, lse = halves[0]
    assert_close(out, scores.softmax(-1) @ v)
    assert_close(lse, scores.logsumexp(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_join_writes_to_its_first_operand(dtype: torch.dtype) -> None:
    """Half types are weighed in float32; the log-sum-exp is never a half; nothing beside the slice is touched."""
    exact = torch.promote_types(dtype, torch.float32)
    whole = torch.zeros(1, 4, 1, 2, dtype=dtype), torch.zeros(1, 4, 1, dtype=exact)
    whole[0][:, 1:3] = 1
    join((whole[0][:, 1:3], whole[1][:, 1:3]), (torch.full((1, 2, 1, 2), 3, dtype=dtype), whole[1].new_zeros(1, 2, 1)))
    assert (whole[0][:, 1:3] == 2).all() and (whole[1][:, 1:3] == torch.tensor(2.0, dtype=exact).log()).all()
    assert not whole[0][:, ::3].any() and not whole[1][:, ::3].any()


@pytest.mark.parametrize("tokens", [3, 50])
def test_halves_are_joined_a_few_tokens_at_a_time_to_the_same(tokens: int) -> None:
    """More numbers than are weighed at once, in one token or many: as all at once in float32, rounded."""
    torch.manual_seed(0)
    wide = 2 * JOINED_AT_ONCE if tokens == 3 else JOINED_AT_ONCE // 16
    (out1, lse1), (out2, lse2) = (
        (torch.randn(1, tokens, 1, wide).bfloat16(), torch.randn(1, tokens, 1)) for _ in range(2)
    )
    expected = out1.float().lerp(out2.float(), torch.sigmoid(lse2 - lse1)[..., None]).bfloat16()
    join((out1, lse1), (out2, lse2))
    assert torch.equal(out1, expected)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_pieces_are_views_in_parts(batch: int, parts: int, each: int, everyone: int) -> None:
    """Part p of a video is row p of its piece, and every piece reads x in place."""
    x = torch.arange(batch * (everyone + parts * each) * 2 * 3).reshape(batch, everyone + parts * each, 2, 3)
    first, local = range(everyone), range(everyone, everyone + parts * each)
    asked = Pass(first, (range(x.shape[1]),)), Pass(local, (first,)), Pass(local, (local,), parts)
    found = list(pieces(asked, batch))
    assert [piece.joins for piece in found] == [False, False, *[True] * (len(found) - 2)]
    for piece in found:
        for cut in piece.operands(x, x, x):
            assert cut.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    for video, piece in enumerate(found[2:]):
        own = x[slice(None) if parts == 1 else slice(video, video + 1), everyone:]
        assert torch.equal(piece.of_keys(x).flatten(0, 1), own.flatten(0, 1))
    assert len(found) == (3 if parts == 1 else 2 + batch)
