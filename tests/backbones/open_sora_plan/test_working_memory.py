"""What a step is told to need is what it needs under any plan, too."""

from functools import partial

import pytest
import torch
from torch import Tensor

from vdit_cli.attention.by_passes import forward_by_passes, spelled
from vdit_cli.attention.order import from_order, to_order
from vdit_cli.backbones.dry_run import working_bytes
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.working_memory import denoising_bytes
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.passes import passes, token_order

CONFIG = {"num_layers": 2, "num_attention_heads": 24, "attention_head_dim": 96, "caption_channels": 4096}
GRID = VideoGrid(8, 45, 80)
MASKS = ("1:7", "2:6", "4:4")


def attended(mask: TileMask, copies: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A site's attention by the body of its operator, whose tensors a counter would not see; and copies of q."""
    order, numbers = token_order(mask, GRID), spelled(passes(mask, GRID))
    held = [q.clone() for _ in range(copies)]
    in_order = (to_order(x, order) for x in (q, k, v))
    out = from_order(forward_by_passes(*in_order, numbers, 0.1, "cpu flash")[0], order)
    del held
    return out


def under_a_plan(dtype: torch.dtype, batch: int, name: str, copies: int = 0) -> int:
    """Bytes of a full-size step whose sites hold a mask; its tokens are put in order at each of them."""
    with torch.device("meta"):
        transformer = OpenSoraT2V(CONFIG).to(dtype)
        x, t = torch.empty(batch, 4, 8, 90, 160, dtype=dtype), torch.empty(batch)
        text = torch.empty(batch, 1, CONFIG["caption_channels"], dtype=dtype)
        for block in transformer.blocks:
            block.attn1.attend = partial(attended, TileMask.parse(name, 8), copies)
        return working_bytes(partial(transformer, x, t, text))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_no_mask_takes_more_than_is_told(dtype: torch.dtype, batch: int) -> None:
    """The most is alive in the feed-forward. A site that held 16 copies of its queries would be seen."""
    told = denoising_bytes(CONFIG, dtype, (batch, 4, 8, 90, 160))
    assert {under_a_plan(dtype, batch, name) for name in MASKS} == {told}
    assert under_a_plan(dtype, batch, MASKS[0], copies=16) > told
