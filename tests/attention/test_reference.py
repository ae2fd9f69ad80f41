"""The reference itself, against softmax written out with loops."""

import math

import pytest
import torch

from tests.closeness import assert_close
from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

pytestmark = pytest.mark.numerical


def test_reference_is_softmax_over_the_kept_pairs() -> None:
    """Each output row from exponentials of its kept scores, summed one by one."""
    grid, mask = VideoGrid(3, 1, 2, text_before=1), TileMask(3, (1,))
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, grid.tokens, 2, 3) for _ in range(3))
    found = reference_attention(q, k, v, mask, grid)
    frames = [grid.frame_of(token) for token in range(grid.tokens)]
    for b in range(2):
        for h in range(2):
            for i, own in enumerate(frames):
                kept = [j for j, of in enumerate(frames) if own in (None, 1) or of in (None, 1) or of == own]
                weights = [math.exp(sum((q[b, i, h] * k[b, j, h]).tolist()) / math.sqrt(3)) for j in kept]
                rows = zip(weights, kept, strict=True)
                expected = sum(w * v[b, j, h].double() for w, j in rows) / sum(weights)
                assert_close(found[b, i, h], expected, atol=1e-6)
