"""Tile masses against the whole float64 map: torch in chunks, Triton (in its interpreter where there is no GPU)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.analysis.planted import LAYERS, dense_shares, dense_tile_mass, planted, true_mass
from tests.closeness import assert_close
from vdit_cli.analysis import tile_mass as rooms
from vdit_cli.analysis.tile_mass import KERNELS, choose_kernel, tile_mass
from vdit_cli.errors import EvditError
from vdit_cli.tiles.grid import VideoGrid

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # the interpreter, on text of no tokens
ROOT = Path(__file__).resolve().parents[2]
GRIDS = [
    VideoGrid(3, 5, 7),
    VideoGrid(4, 9, 15, text_before=7, text_after=9),
    VideoGrid(2, 1, 1),
    VideoGrid(2, 8, 16, text_before=5),
    VideoGrid(5, 3, 3, text_after=1),
]


def random_qk(grid: VideoGrid, heads: int, width: int, scale: float = 2.0) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(grid.tokens)
    return [scale * torch.randn(grid.tokens, heads, width, generator=random) for _ in range(2)]


@pytest.mark.numerical
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_masses_are_those_of_the_dense_softmax(grid: VideoGrid, kernel: str, monkeypatch: pytest.MonkeyPatch):
    """To 1e-5 in float32, with text and odd sizes; rows and their text add up to 1."""
    monkeypatch.setattr(rooms, "CHUNK_SCORES", 4000)  # several chunks a frame
    q, k = random_qk(grid, 2, 24)
    mass, text = (x.cpu() for x in tile_mass(q.to(DEVICE), k.to(DEVICE), grid, kernel))
    true = dense_tile_mass(dense_shares(q, k), grid)
    assert_close(mass, torch.as_tensor(true), atol=1e-5)
    assert_close(mass.sum(-1) + text, torch.ones_like(text), atol=1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("kernel", KERNELS)
def test_adversarial_scores(kernel: str):
    """Scores in the hundreds, a head width that is no power of two, a view with strides, and equal scores."""
    grid = VideoGrid(3, 4, 5, 2, 3)
    q, k = random_qk(grid, 3, 96, scale=20.0)
    whole = torch.stack([q, k], dim=2).to(DEVICE)
    mass, _ = tile_mass(whole[:, :, 0], whole[:, :, 1], grid, kernel)
    assert_close(mass, torch.as_tensor(dense_tile_mass(dense_shares(q, k), grid)), atol=1e-5)
    mass, text = tile_mass(torch.zeros_like(q).to(DEVICE), k.to(DEVICE), grid, kernel)
    assert_close(mass, torch.full_like(mass.cpu(), 20 / 65), atol=1e-6)
    assert_close(text, torch.full_like(text.cpu(), 5 / 65), atol=1e-6)


@pytest.mark.numerical
@pytest.mark.parametrize("kernel", KERNELS)
def test_heads_in_groups(kernel: str, monkeypatch: pytest.MonkeyPatch):
    """Where the stored numbers of all heads would be too many, they come some heads at a time."""
    from vdit_cli.analysis.kernels import tile_mass as written

    monkeypatch.setattr(written, "STORED_BYTES", 4 * 27 * 5 * 2)
    grid = VideoGrid(3, 3, 3)
    q, k = random_qk(grid, 5, 16)
    mass, _ = tile_mass(q.to(DEVICE), k.to(DEVICE), grid, kernel)
    assert_close(mass, torch.as_tensor(dense_tile_mass(dense_shares(q, k), grid)), atol=1e-5)


@pytest.mark.numerical
@pytest.mark.parametrize("kind", LAYERS)
def test_planted_masses_have_a_closed_form(kind: str):
    """softmax of the planted frame scores, except where every token is its own."""
    grid = VideoGrid(8, 4, 4)
    mass, _ = tile_mass(*planted(kind, grid, 1), grid)
    if kind != "unstable":
        assert_close(mass, torch.as_tensor(true_mass(kind, 8)).expand_as(mass), atol=1e-5)


def test_what_is_refused():
    """Tensors of another grid, and a kernel of no table."""
    q = torch.zeros(12, 1, 4)
    with pytest.raises(ValueError, match="do not fit"):
        tile_mass(q, q, VideoGrid(2, 2, 2))
    with pytest.raises(EvditError, match="unknown kernel"):
        tile_mass(q, q, VideoGrid(3, 2, 2), "tritn")
    assert choose_kernel(torch.device("cpu"), 96) == "torch"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_the_kernel_compiles_for_a_gpu_that_is_not_here(tmp_path: Path):
    """For the H100's instruction set, within its 227 KiB of shared memory; nothing is run."""
    bare = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    bare["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.analysis.compile_tile_mass"]
    done = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sizes = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(sizes) == 3 and max(sizes) <= 227 * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_at_full_size():
    """28,800 tokens x 24 heads x 96 in bfloat16: at most 200 MB; `tests/speed.py` prints the time."""
    grid = VideoGrid(8, 45, 80)
    q, k = (x.cuda().bfloat16() for x in random_qk(grid, 24, 96, scale=1.0))
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tile_mass(q, k, grid, "triton")
    assert torch.cuda.max_memory_allocated() - before < 200e6
