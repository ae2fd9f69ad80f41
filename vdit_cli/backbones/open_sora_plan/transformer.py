"""OpenSoraT2V: the video diffusion transformer of Open-Sora-Plan v1.2, with its state-dict keys.

Letters: B batch, C channels, F latent frames, h, w latent size, N = F * rows * cols video tokens, L text tokens.
Source: Open-Sora-Plan v1.2.0; tests/golden/ holds outputs of the original code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vdit_cli.attention.order import frame_ranges, from_order, to_order
from vdit_cli.backbones.open_sora_plan import loading
from vdit_cli.backbones.open_sora_plan.prepared_text import PreparedText, cropped
from vdit_cli.backbones.open_sora_plan.rope import rotary_tables
from vdit_cli.backbones.open_sora_plan.transformer_config import complete, position_scales
from vdit_cli.backbones.open_sora_plan.transformer_layers import (
    Block,
    PatchEmbedding,
    TimeModulation,
    TwoLinear,
    modulated_norm,
)
from vdit_cli.errors import EvditError

MASKED = -10000.0
"""What upstream adds to the score of a masked key; where all keys are masked, they all count the same."""
KEPT_TABLES = 4
"""Rotary tables of so many grids are kept; at 93 x 720p one takes 33 MB."""

MOST_GRAPHS = 64
"""Of a block's code so many graphs may be compiled: one for each mask, batch and length that a process runs."""
TableKey = tuple[tuple[int, int, int], tuple[int, ...] | None, torch.device]
"""Grid, order of the frames and device of a rotary table."""


class Entered(NamedTuple):
    """What a call gives its blocks: the grid, the first tokens, modulation, text and positions."""

    grid: tuple[int, int, int]
    x: Tensor
    modulation_B6C: Tensor
    embedded_BC: Tensor
    text: PreparedText
    cos: Tensor
    sin: Tensor
    padding_bias: Tensor | None

    def of_block(self, index: int) -> tuple[Any, ...]:
        """What the block `index` takes behind its tokens."""
        text = self.text
        return self.modulation_B6C, text.of_block(index), text.bias, self.cos, self.sin, self.padding_bias


class OpenSoraT2V(nn.Module):
    """A transformer over video latents, conditioned on a timestep and on text states.

    `transformer_blocks[i].attn1` are the attention sites. `checkpoint_blocks` trades a second forward pass of each
    block for its activations while training. `frame_order` is the order in which the blocks hold the frames, for masks
    bound in it (`MaskPlan.frame_order`; None: frame after frame). `config` holds every key of the given one.
    Raises EvditError for a config value that is not implemented, naming its key.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = complete(dict(config))
        self.checkpoint_blocks = False
        self.frame_order: tuple[int, ...] | None = None
        heads, channels = self.config["num_attention_heads"], self.channels
        patch, outputs = self.config["patch_size"], self.config["out_channels"]
        self.pos_embed = PatchEmbedding(self.config["in_channels"], channels, patch)
        self.adaln_single = TimeModulation(channels)
        self.caption_projection = TwoLinear(self.config["caption_channels"], channels, nn.GELU(approximate="tanh"))
        self.transformer_blocks = nn.ModuleList(
            Block(channels, heads, self.config["norm_eps"]) for _ in range(self.config["num_layers"])
        )
        self.scale_shift_table = nn.Parameter(torch.randn(2, channels) / math.sqrt(channels))
        self.proj_out = nn.Linear(channels, patch * patch * outputs)
        self._tables: dict[TableKey, tuple[Tensor, Tensor]] = {}

    @property
    def channels(self) -> int:
        """C, the width of a token."""
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return [cast(Block, block) for block in self.transformer_blocks]

    def token_grid(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
        """(F, rows, cols) of the tokens of latents whose shape ends in (F, h, w).

        Raises EvditError when h or w does not divide by the patch.
        """
        frames, height, width = latent_shape[-3:]
        patch = self.config["patch_size"]
        if height % patch or width % patch:
            raise EvditError(f"latents of {height} x {width} do not fit patches of {patch} x {patch}: both must divide")
        return frames, height // patch, width // patch

    def rotary(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the grid's positions in float32, made once for a grid, order of frames and device."""
        key = (grid, self.frame_order, device)
        if key not in self._tables:
            while len(self._tables) >= KEPT_TABLES:
                del self._tables[next(iter(self._tables))]
            scales = position_scales(self.config)
            with torch.inference_mode(False):
                cos, sin = rotary_tables(grid, self.config["attention_head_dim"], scales, device)
                self._tables[key] = self._ordered(cos, grid[0]), self._ordered(sin, grid[0])
        return self._tables[key]

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | PreparedText,
        encoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """The prediction for noisy latents, in their shape (but for out_channels) and type.

        `hidden_states` (B, C, F, h, w), `timestep` (B,) whole or fractional, `encoder_hidden_states` (B, 1, L, C') or
        (B, L, C') or what `prepare_text` made of them, `encoder_attention_mask` (B, 1, L) or (B, L) with 1 = keep,
        `attention_mask` (B, F, h, w) with 1 = keep: leave it out when nothing is padded, since looking at it waits for
        the device.
        """
        given = self._entered(hidden_states, timestep, encoder_hidden_states, encoder_attention_mask, attention_mask)
        x = given.x
        for index, block in enumerate(self.transformer_blocks):
            arguments = (x, *given.of_block(index))
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        return self._left(x, given).to(hidden_states.dtype)

    def layerwise(
        self, hidden_states: Tensor, timestep: Tensor, states_BLC: Tensor, mask_BL: Tensor
    ) -> Iterator[tuple[Tensor, ...]]:
        """What `forward` computes, block by block as it is asked for; see `base.TellsLayers`."""
        given = self._entered(hidden_states, timestep, states_BLC, mask_BL, None)
        x = given.x
        for index, block in enumerate(self.transformer_blocks):
            attended, x = block(x, *given.of_block(index), told=True)
            yield self._tokens_out(attended, given.grid), self._tokens_out(x, given.grid)
        yield (self._left(x, given).to(hidden_states.dtype),)

    @torch.no_grad()
    def prepare_text(self, states: Tensor, mask: Tensor | None = None, with_keys: bool = True) -> PreparedText:
        """Text cropped and projected once for all steps, in every block's keys and values unless `with_keys` is off.

        `states` (B, 1, L, C') or (B, L, C'), `mask` (B, 1, L) or (B, L) with 1 = keep. Off is for blocks whose weights
        are not there. Waits for the device.
        """
        states, mask = cropped(states.flatten(1, -2), None if mask is None else mask.flatten(1))
        text = self._projected(states, mask)
        if not with_keys:
            return text
        return replace(text, keys_values=tuple(block.attn2.keys_values(text.projected_BLC) for block in self.blocks))

    def fuse(self) -> None:
        """One product for queries, keys and values in each site, for inference. Raises ValueError under adapters."""
        for block in self.blocks:
            block.attn1.fuse()

    def unfuse(self) -> None:
        """The inverse of `fuse`."""
        for block in self.blocks:
            block.attn1.unfuse()

    @property
    def is_fused(self) -> bool:
        """Whether `fuse` holds."""
        return all(block.attn1.is_fused for block in self.blocks)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let each block run compiled, one graph for all blocks with the same mask; a second call changes nothing.

        The first step then takes as long as the compiler needs. An attention kernel that can't be traced stays outside
        of the graph.
        """
        # A graph for each mask, batch and length: torch's own limit of 8 is too low for plans of long videos.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
        for block in self.transformer_blocks:
            if block._compiled_call_impl is None:
                block.compile(backend=backend, dynamic=False)

    def _entered(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        text: Tensor | PreparedText,
        text_mask: Tensor | None,
        attention_mask: Tensor | None,
    ) -> Entered:
        """What the blocks are given, and the output layer after them."""
        grid = self.token_grid(hidden_states.shape)
        self._check_sites(grid)
        cos, sin = self.rotary(grid, hidden_states.device)
        if not isinstance(text, PreparedText):
            text = self._projected(text, text_mask)
        # All rows at one timestep, as `expand` makes them, need one row of modulation.
        modulation_B6C, embedded_BC = self.adaln_single(timestep if timestep.stride(0) else timestep[:1])
        stream = self.scale_shift_table.dtype
        modulation_B6C = modulation_B6C.unflatten(-1, (6, -1)).to(stream)
        x = self.pos_embed(self._frames_in(hidden_states).to(self.pos_embed.proj.weight.dtype)).to(stream)
        return Entered(grid, x, modulation_B6C, embedded_BC, text, cos, sin, self._padding_bias(attention_mask))

    def _left(self, x_BNC: Tensor, given: Entered) -> Tensor:
        """The prediction of what comes out of the last block."""
        shift, scale = (self.scale_shift_table + given.embedded_BC[:, None]).chunk(2, dim=1)
        x = self.proj_out(modulated_norm(x_BNC, shift, scale, self.config["norm_eps"]))
        return self._frames_out(self._unpatch(x, given.grid))

    def _projected(self, states: Tensor, mask: Tensor | None) -> PreparedText:
        weight = self.caption_projection.linear_1.weight
        text = self.caption_projection(states.flatten(1, -2).to(weight.dtype))
        return PreparedText(text, None if mask is None else _bias(mask.flatten(1)))

    def _unpatch(self, x_BNP: Tensor, grid: tuple[int, int, int]) -> Tensor:
        patch = self.config["patch_size"]
        frames, rows, cols = grid
        x = x_BNP.view(-1, frames, rows, cols, patch, patch, self.config["out_channels"])
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, x.shape[-1], frames, rows * patch, cols * patch)

    def _padding_bias(self, mask_BFhw: Tensor | None) -> Tensor | None:
        if mask_BFhw is None or bool((mask_BFhw == 1).all()):
            return None
        mask = F.max_pool2d(mask_BFhw.float(), self.config["patch_size"])
        return _bias((mask if self.frame_order is None else to_order(mask, frame_ranges(self.frame_order))).flatten(1))

    def _frames_in(self, x_BCFhw: Tensor) -> Tensor:
        """The frames in the order of the blocks: latents, since they are far smaller than tokens."""
        if self.frame_order is None:
            return x_BCFhw
        return to_order(x_BCFhw.transpose(1, 2), frame_ranges(self.frame_order)).transpose(1, 2)

    def _frames_out(self, x_BCFhw: Tensor) -> Tensor:
        if self.frame_order is None:
            return x_BCFhw
        return from_order(x_BCFhw.transpose(1, 2), frame_ranges(self.frame_order)).transpose(1, 2)

    def _tokens_out(self, x_BNC: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Tokens frame after frame, whatever order the blocks hold them in."""
        if self.frame_order is None:
            return x_BNC
        return from_order(x_BNC.unflatten(1, (grid[0], -1)), frame_ranges(self.frame_order)).flatten(1, 2)

    def _ordered(self, table_N1AID: Tensor, frames: int) -> Tensor:
        if self.frame_order is None:
            return table_N1AID
        return table_N1AID.unflatten(0, (frames, -1))[list(self.frame_order)].flatten(0, 1)

    def _check_sites(self, grid: tuple[int, int, int]) -> None:
        """Raise ValueError for masks bound in another order of frames: they would be computed, and wrong."""
        bound = {getattr(block.attn1.attend, "frame_order", self.frame_order) for block in self.blocks}
        if bound != {self.frame_order}:
            raise ValueError(f"masks are bound for frames in order {bound}, the blocks hold them in {self.frame_order}")
        if self.frame_order is not None and len(self.frame_order) != grid[0]:
            raise ValueError(f"{grid[0]} frames: the plan puts {len(self.frame_order)} in order")

    def initialise(self, generator: torch.Generator) -> None:
        """Start weights for training from scratch, drawn from `generator` in the order of the state dict.

        Matrices Xavier-uniform, biases zero, time embedder and modulation normal .02, tables normal / sqrt(C), output
        projection zero so that the first prediction is zero. The output of cross-attention is not zero [ours;
        PixArt-alpha starts it at zero, for fine-tuning an image model]: text is learnt from the first step.
        """
        for name, parameter in self.named_parameters():
            start = torch.empty(parameter.shape, device=generator.device)
            if name.endswith("bias") or name.startswith("proj_out."):
                start.zero_()
            elif name.endswith("scale_shift_table"):
                start.normal_(0, 1 / math.sqrt(self.channels), generator=generator)
            elif name.startswith("adaln_single."):
                start.normal_(0, 0.02, generator=generator)
            else:
                nn.init.xavier_uniform_(start.flatten(1), generator=generator)
            with torch.no_grad():
                parameter.copy_(start)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        change: loading.Change = loading.unchanged,
    ) -> Self:
        """The model in `folder` (config.json and safetensors, sharded or not), ready to sample.

        `change` makes of each stored tensor what is loaded.
        Raises EvditError for missing, damaged or unfitting files.
        """
        with torch.device("meta"):
            model = cls(loading.read_config(folder))
        loading.load_strict(model, folder, dtype, device, change)
        return model.eval()

    def save_pretrained(
        self, folder: Path | str, dtype: torch.dtype | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write config.json and weights, the latter as `dtype` if given, so that `from_pretrained` reads them."""
        loading.save_weights(self, folder, self.config, dtype=dtype, metadata=metadata)


def _bias(mask_BN: Tensor) -> Tensor:
    return ((1 - mask_BN.float()) * MASKED)[:, None, None, :]
