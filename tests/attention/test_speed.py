"""Tile attention must be worth it: how much it computes, counted. How long that takes, `tests/speed.py` measures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vdit_cli.attention import by_passes
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.dense import Kept, pick
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask


def test_mask_1_7_computes_22_of_64_tiles_in_three_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row and column of the global frame and the diagonal: 1 + 7 + 7 + 7 tiles, and no call a frame."""
    computed: list[float] = []

    def counting(operands: list[tuple[Tensor, Tensor, Tensor]]) -> by_passes.DenseCall:
        found = pick(operands)

        def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Kept]:
            batch, heads, queries, _ = q.shape
            assert heads == 2
            computed.append(batch * queries * k.shape[2] / 64**2)
            return found.forward(q, k, v, scale)

        return replace(found, forward=forward)

    monkeypatch.setattr(by_passes, "pick", counting)
    grid = VideoGrid(8, 8, 8)
    attend = bind(TileMask.parse("1:7", 8), Case(grid, 2, 16, 1, torch.float32, torch.device("cpu")), "sdpa")
    attend(*(torch.randn(1, grid.tokens, 2, 16) for _ in range(3)))
    assert sorted(computed) == [7, 7, 8]
