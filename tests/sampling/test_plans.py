"""Measured times in generation: read for `auto` alone, and said where a mask is slower than full attention."""

from pathlib import Path

import pytest
import torch

from tests.sampling.fakes import GaussianBackbone
from vdit_cli.attention import bind as bind_module
from vdit_cli.attention import costs
from vdit_cli.attention.bind import Case
from vdit_cli.attention.costs import CostTable, Machine
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling import generate as generating
from vdit_cli.sampling.generate import Asked, generate
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Silent

MASK, FULL = TileMask.parse("1:2", 3), TileMask.dense(3)
CASE = Case(VideoGrid(3, 2, 3), 2, 6, 2, torch.float32, torch.device("cpu"))
"""Nine frames of the stand-in backbone, with guidance."""


@pytest.fixture(autouse=True)
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GaussianBackbone:
    """A backbone without weights, and a cache folder of the test's own."""
    made = GaussianBackbone()
    monkeypatch.setattr(generating, "open_backbone", lambda source, **_: made)
    monkeypatch.setattr(costs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    return made


def made_with(table: CostTable, out: Path, **options: object) -> tuple[dict, list[str]]:
    """The receipt of the first layer of a video of nine frames under mask 1:2, and what was said."""
    table.write()
    progress = Silent()
    asked = Asked(("7",), None, out / "out.mp4")
    (made,) = generate(GenerateOptions(masks="1:2", video_frames=9, **options), asked, progress)
    return dict(made.receipt.ran.layers[0]), [line for line in progress.lines if "full attention" in line]


def table_of(sparse: float, full: float) -> CostTable:
    """Times of the mask and of full attention on this machine."""
    empty = CostTable(Machine.of(CASE.device))
    return empty.with_times(MASK, CASE, {"sdpa": sparse}).with_times(FULL, CASE, {"sdpa": full})


def test_a_mask_measured_slower_is_kept_and_told(tmp_path: Path) -> None:
    """One line, and the ratio in the receipt; the mask stays."""
    layer, said = made_with(table_of(3e-3, 2e-3), tmp_path)
    assert (layer["mask"], layer["kernel"], layer["dense_is_faster"]) == ("1:2", "sdpa", 1.5)
    assert len(said) == 1
    assert "mask 1:2 was measured to take 1.50 times as long as full attention here (--masks none)" in said[0]


@pytest.mark.parametrize(("sparse", "full", "options"), [(1e-3, 2e-3, {}), (3e-3, 2e-3, {"kernel": "sdpa"})])
def test_nothing_is_said_otherwise(tmp_path: Path, sparse: float, full: float, options: dict) -> None:
    """The mask is faster, or a kernel was asked for and no table is read."""
    layer, said = made_with(table_of(sparse, full), tmp_path, **options)
    assert said == [] and "dense_is_faster" not in layer


def test_the_times_that_kernels_were_chosen_by_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a line and in the receipt, where there was a choice."""
    monkeypatch.setattr(bind_module, "KERNELS", ("triton", "sdpa"))
    monkeypatch.setattr(bind_module, "timed_kernels", lambda case: ("sdpa",))
    table = table_of(1e-3, 2e-3).with_times(MASK, CASE, {"triton": 4e-3})
    table.write()
    progress = Silent()
    asked = Asked(("7",), None, tmp_path / "out.mp4")
    (made,) = generate(GenerateOptions(masks="1:2", video_frames=9), asked, progress)
    assert "kernels by their times: 1:2 sdpa (sdpa 1 ms, triton 4 ms)" in progress.lines
    assert made.receipt.ran.layers[0]["milliseconds"] == {"sdpa": 1.0, "triton": 4.0}


def test_a_broken_table_is_left_out(tmp_path: Path) -> None:
    """Generation goes on, and says so once."""
    file = table_of(3e-3, 2e-3).write()
    file.write_text("{", encoding="utf-8")
    progress = Silent()
    asked = Asked(("7",), None, tmp_path / "out.mp4")
    generate(GenerateOptions(masks="1:2", video_frames=9), asked, progress)
    assert sum(str(file) in line for line in progress.lines) == 1
