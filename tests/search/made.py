"""Sensitivity tables made up for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vdit_cli.attention.costs import GATHER, CostTable, Machine, Row
from vdit_cli.search.mask_costs import Call
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask

MASKS = tuple(TileMask.parse(name, 8) for name in ("8:0", "4:4", "2:6", "1:7"))
GRID = VideoGrid(8, 4, 6)


def table_of(
    loss_LM: Sequence[Sequence[float]] | np.ndarray,
    prompts: int = 2,
    steps: int = 3,
    noise: float = 0.0,
    masks: tuple[TileMask, ...] = MASKS,
) -> SensitivityTable:
    """A table whose attention loss has this mean; prompts differ by `noise` of it, steps by a tenth. Seed 0."""
    loss_LM = np.asarray(loss_LM, np.float64)
    drawn = np.random.default_rng(0).normal(size=(*loss_LM.shape, prompts, 1))
    of_prompt = np.abs(1 + noise * (drawn - drawn.mean(axis=2, keepdims=True)))
    of_step = 1 + 0.1 * (np.arange(steps) - (steps - 1) / 2)
    loss_LMPS = loss_LM[:, :, None, None] * of_prompt * of_step
    return SensitivityTable(
        "shapes",
        "shapes",
        "ab" * 32,
        Architecture("OpenSoraT2V", len(loss_LM), 6, 48),
        VideoGrid(masks[0].frames, 4, 6),
        masks,
        tuple((f"prompt {i}", 10 + i) for i in range(prompts)),
        tuple(range(steps)),
        tuple(900.0 - 10 * step for step in range(steps)),
        {"attention": loss_LMPS, "relative": loss_LMPS / 2},
        {"guidance": 7.5, "dtype": "float32"},
    )


def times_of(call: Call, seconds: Mapping[str, float], gather: float | None = None) -> CostTable:
    """A cost table of one call: these seconds by the name of a mask, and of gathering."""
    grid = VideoGrid(call.grid.frames, 1, call.grid.frame_tokens, call.grid.text_before, call.grid.text_after)
    rows = {}
    for name, each in seconds.items():
        mask = TileMask.parse(name, grid.frames)
        rows[Row(call.dtype, call.head_dim, call.heads, call.batch, grid, mask, call.needs_grad, "sdpa")] = each
    if gather is not None:
        dense = TileMask.dense(grid.frames)
        rows[Row(call.dtype, call.head_dim, call.heads, call.batch, grid, dense, call.needs_grad, GATHER)] = gather
    return CostTable(Machine("a GPU", "2.13", "3.9", "1.0"), rows)
