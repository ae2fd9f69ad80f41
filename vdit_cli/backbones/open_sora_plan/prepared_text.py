"""What of the text does not change from step to step: cropped, projected, and in each block's keys and values.

Letters: B batch, L text tokens, C channels, H heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vdit_cli.backbones.open_sora_plan.transformer_layers import KeysValues


@dataclass(frozen=True)
class PreparedText:
    """Text of a network batch for the blocks: projected, what its padding adds to scores, keys and values if made.

    `keys_values` has (keys, values) of (B, L, H, D) for each block, or is empty, and then blocks make their own.
    """

    projected_BLC: Tensor
    bias: Tensor | None
    keys_values: tuple[KeysValues, ...] = ()

    def of_block(self, index: int) -> Tensor | KeysValues:
        """What block `index` takes: its keys and values, or the projected text."""
        return self.keys_values[index] if self.keys_values else self.projected_BLC


def cropped(states_BLC: Tensor, mask_BL: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The text up to the last token that any row keeps, and its mask, None where every row keeps all of it.

    A row that keeps nothing reads all of its padding alike (upstream's bias), so then nothing is cropped.
    """
    if mask_BL is None:
        return states_BLC, None
    kept_BL = mask_BL != 0
    if not bool(kept_BL.any(1).all()):
        return states_BLC, mask_BL
    length = int(kept_BL.any(0).nonzero().max()) + 1
    states_BLC, mask_BL = states_BLC[:, :length], mask_BL[:, :length]
    return states_BLC, None if bool((mask_BL == 1).all()) else mask_BL
