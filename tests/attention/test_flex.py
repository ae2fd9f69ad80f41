"""FlexAttention's block mask against the token mask, and its output; compiled kernels need a GPU."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from tests.attention.cases import assert_right, inputs, outputs
from tests.closeness import assert_close
from tests.tiles.strategies import grids, masks
from vdit_cli.attention.bind import Attend, Case, bind
from vdit_cli.attention.kernels import flex
from vdit_cli.attention.reference import reference_attention
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import passes, token_order

pytestmark = pytest.mark.numerical

CPU = torch.device("cpu")
CASE = Case(VideoGrid(8, 2, 3), 2, 32, 1, torch.bfloat16, torch.device("cuda"))
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def in_blocks(mask: TileMask, grid: VideoGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Which 128 x 128 blocks of the mask, in the order of the passes, hold some kept pairs, and which only such."""
    places = torch.cat([torch.arange(piece.start, piece.stop) for piece in token_order(mask, grid)])
    kept = torch.from_numpy(mask.token_mask(grid))[places][:, places]
    rest = -len(kept) % 128
    padded = torch.nn.functional.pad(kept, (0, rest, 0, rest))
    blocks = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    return blocks.any(3).any(1), blocks.all(3).all(1)


@settings(max_examples=40, deadline=None)
@given(masks().flatmap(lambda mask: st.tuples(st.just(mask), grids(mask.frames, most=16))))
def test_blocks_are_those_of_the_token_mask(case: tuple[TileMask, VideoGrid]) -> None:
    """Some and whole, found from three numbers, against every pair of every block."""
    mask, grid = case
    found = passes(mask, grid)
    if len(found) == 1:
        return
    frame = len(found[2].queries) // found[2].parts
    some, whole = flex.kept_blocks(found[0].queries.stop, frame, grid.tokens, CPU)
    wanted_some, wanted_whole = in_blocks(mask, grid)
    assert torch.equal(some, wanted_some) and torch.equal(whole, wanted_whole)


@pytest.mark.parametrize(("name", "size"), [("1:7", (8, 10)), ("2:6", (5, 13)), ("4:4", (16, 16))])
def test_the_block_mask_is_torchs_own(name: str, size: tuple[int, int]) -> None:
    """Equal to what create_block_mask finds by looking at all pairs."""
    grid = VideoGrid(8, *size)
    ours = flex.block_mask(passes(TileMask.parse(name, 8), grid), CPU)
    theirs = create_block_mask(ours.mask_mod, None, None, grid.tokens, grid.tokens, device="cpu")
    assert isinstance(ours, BlockMask) and ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert_close(ours.sparsity(), theirs.sparsity())
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
    assert torch.equal(ours.q_num_blocks, theirs.q_num_blocks)


@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "text"), [("1:7", (0, 0)), ("2:6", (3, 5))])
def test_uncompiled_it_is_the_masked_softmax(name: str, text: tuple[int, int]) -> None:
    """The mask and the order of tokens, on the CPU, where all scores are held and there is no backward."""
    mask, grid = TileMask.parse(name, 8), VideoGrid(8, 3, 5, *text)
    case = replace(CASE, grid=grid, head_dim=16, device=CPU, dtype=torch.float32)
    attend = replace(bind(mask, case, "sdpa"), run=flex.run)
    q, k, v = (x.detach() for x in inputs(mask, grid, 2, 2, 16)[:3])
    assert_close(attend(q, k, v), reference_attention(q, k, v, mask, grid), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"device": CPU}, "would hold all N x N scores"),
        ({"dtype": torch.float64}, "float64 is none of"),
        ({"head_dim": 8}, "head width 8 is not from 16 to 256"),
    ],
)
def test_what_it_can_not_take_is_refused_with_the_reason(change: dict, rule: str) -> None:
    """Nothing is compiled to find out."""
    assert rule in (flex.supports(replace(CASE, **change)) or "")


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize(("name", "text"), [("1:7", (0, 0)), ("2:6", (3, 5)), ("4:4", (0, 7))])
def test_compiled_on_a_gpu(name: str, text: tuple[int, int]) -> None:
    """Output and gradients in float32."""
    mask, grid = TileMask.parse(name, 8), VideoGrid(8, 9, 15, *text)
    given_ = inputs(mask, grid, 2, 2, 32, device="cuda")
    attend: Attend = bind(mask, replace(CASE, grid=grid, batch=2, dtype=torch.float32), "flex")
    assert attend.kernel == "flex"
    assert_right(outputs(attend, *given_), *given_, mask, grid, 1e-4)
