"""A transformer of full size with random weights, and the time of its step in each way that it can be taken.

Letters: B network batch, C channels, F latent frames, h, w latent size, N video tokens, L text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vdit_cli.attention.bind import Attend, Case, bind
from vdit_cli.attention.costs import CostTable, Machine
from vdit_cli.attention.kernel_times import KnownOrMeasured
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.open_sora_plan.prepared_text import PreparedText
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.bench.clock import Work, clock_for, time_in_turns
from vdit_cli.bench.contenders import first_line
from vdit_cli.bench.facts import today
from vdit_cli.bench.measuring import free_memory, is_out_of_memory
from vdit_cli.bench.model_rows import EAGER, PLAIN, StepRow
from vdit_cli.bench.model_sizes import ModelSize
from vdit_cli.bench.plain import PlainStep, plain_attention
from vdit_cli.bench.timed_attention import AttentionClock
from vdit_cli.sampling.peak import PeakMemory
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Silent

ATTENTION_STEPS = 3
"""Eager steps in which attention is timed; the median counts."""
PEAK_SIDE = {"cuda": 8192}
SMALL_PEAK_SIDE = 1024
"""Side of the square matrices whose product gives the peak."""
UNHEARD = Silent().say
WEIGHT_STD = 0.02
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Variant:
    """A step to time: latent frames, the plan's name and masks, the way it is computed, whether it has two branches."""

    frames: int
    plan: str
    masks: tuple[TileMask, ...]
    way: str
    guided: bool


@dataclass(frozen=True)
class Timing:
    """How long to time, and the matrix peak in TFLOP/s that the numbers are held against."""

    seconds: float
    least_repeats: int
    peak_tflops: float


class BareBackbone:
    """The transformer of a size with random weights, made on its device: what `sampling.sample` asks of a backbone."""

    scheduler_config = {"prediction_type": "epsilon"}

    def __init__(
        self,
        size: ModelSize,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        say: Callable[[str], None] = UNHEARD,
    ) -> None:
        self.size, self.device, self.dtype, self.say = size, device, dtype, say
        self.generator = torch.Generator(device).manual_seed(seed)
        with torch.device("meta"):
            model = OpenSoraT2V(size.config).to(dtype)
        self.model = model.to_empty(device=device).eval()
        for parameter in self.model.parameters():
            parameter.detach().normal_(0, WEIGHT_STD, generator=self.generator)
        self.model.fuse()
        self.is_compiled = False
        self.times = KnownOrMeasured(CostTable(Machine.of(device)), say)
        self.text, self.null_text = self._text(size.text_tokens), self._text(size.null_tokens)

    def network_text(self, guided: bool) -> TextStates:
        """Padded text of a network batch: the prompt, then with guidance the negative one."""
        if not guided:
            return self.text
        both = (self.text, self.null_text)
        return TextStates(torch.cat([x.states_BLC for x in both]), torch.cat([x.mask_BL for x in both]))

    def latent_shape(self, video_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, h, w), of the size whatever the video."""
        return self.shape_of(self.size.grid.frames)

    def shape_of(self, frames: int) -> tuple[int, int, int, int]:
        """(C, F, h, w) of so many latent frames."""
        return LATENT_CHANNELS, frames, 2 * self.size.grid.rows, 2 * self.size.grid.cols

    def noise(self, frames: int, guided: bool) -> Tensor:
        """Random latents of a network batch."""
        shape = (2 if guided else 1, *self.shape_of(frames))
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def prepare_text(self, text: TextStates) -> PreparedText:
        """The text for all steps."""
        return self.model.prepare_text(text.states_BLC, text.mask_BL)

    def make_fast(self, compiled: bool) -> None:
        """Compile the blocks if asked; the projections are joined from the start."""
        if compiled:
            self.model.compile_blocks()
            self.is_compiled = True

    def eagerly(self) -> AbstractContextManager[Any]:
        """Inside the block compiled blocks run eager ones' way."""
        return torch.compiler.set_stance("force_eager") if self.is_compiled else nullcontext()

    def denoise(self, x_BCFhw: Tensor, t_B: Tensor, text: PreparedText) -> Tensor:
        """The transformer's prediction."""
        return self.model(x_BCFhw, t_B, text)

    def put_plan(self, masks: tuple[TileMask, ...], frames: int, guided: bool, kernel: str) -> tuple[Attend, ...]:
        """Bind the masks of a plan on the sites, frames in the plan's order.

        On a GPU "auto" times the kernels on each mask first and takes the fastest; the times are kept for later runs.
        """
        size = self.size.with_frames(frames)
        case = Case(size.grid, size.heads, size.head_dim, 2 if guided else 1, self.dtype, self.device)
        plan = MaskPlan(size.name, size.grid, masks)
        order = None if plan.frame_order == tuple(range(frames)) else plan.frame_order
        costs = self.times if kernel == "auto" else None
        bound = {mask: bind(mask, case, kernel, order, costs) for mask in plan.distinct()}
        attends = tuple(bound[mask] for mask in masks)
        for block, attend in zip(self.model.blocks, attends, strict=True):
            block.attn1.attend = attend
        self.model.frame_order = order
        return attends

    def take_plan_off(self) -> None:
        """Dense attention and frames in their own order."""
        for block in self.model.blocks:
            block.attn1.attend = None
        self.model.frame_order = None

    def _text(self, valid: int) -> TextStates:
        shape = (1, self.size.padded_tokens, self.size.text_width)
        states = torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)
        mask = (torch.arange(self.size.padded_tokens, device=self.device) < valid).long()[None]
        return TextStates(states, mask)


def measure_step(backbone: BareBackbone, variant: Variant, kernel: str, timing: Timing) -> StepRow:
    """The row of a variant; out of memory is its note."""
    kept = sum(mask.kept_share for mask in variant.masks) / len(variant.masks)
    row = StepRow(
        frames=variant.frames,
        plan=variant.plan,
        way=variant.way,
        guided=variant.guided,
        kept_share=kept,
        skipped_share=1 - kept,
        kernels=[],
    )
    try:
        return _measured(backbone, variant, kernel, timing, row)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        note = f"out of memory: {first_line(error)}"
    free_memory(backbone.device)
    return replace(row, note=note)


@torch.no_grad()
def _measured(backbone: BareBackbone, variant: Variant, kernel: str, timing: Timing, row: StepRow) -> StepRow:
    work, attention_ms, kernels = prepare(backbone, variant, kernel)
    with PeakMemory(backbone.device) as memory:
        work()
    step = time_in_turns({"step": work}, clock_for(backbone.device), timing.seconds, timing.least_repeats)["step"]
    rest_ms = step.median - attention_ms
    attention, linear = step_flops(backbone.size, variant)
    tflops = (attention + linear) / step.median / 1e9
    return replace(
        row,
        kernels=kernels,
        ms=step.median,
        spread=step.spread,
        repeats=len(step.ms),
        attention_ms=attention_ms,
        rest_ms=rest_ms,
        attention_share=attention_ms / step.median,
        tflops=tflops,
        of_peak=tflops / timing.peak_tflops,
        rest_of_peak=linear / rest_ms / 1e9 / timing.peak_tflops if rest_ms > 0 else None,
        peak_bytes=memory.peak,
        measured=today(),
    )


def prepare(backbone: BareBackbone, variant: Variant, kernel: str) -> tuple[Work, float, list[str]]:
    """The step as a call, ms of its self-attention inside an eager step, and the kernels that run in it."""
    x = backbone.noise(variant.frames, variant.guided)
    t = torch.full((1,), 500, device=backbone.device).expand(len(x))
    clock = AttentionClock(backbone.device)
    if variant.way == PLAIN:
        backbone.take_plan_off()
        padded, plain = backbone.network_text(variant.guided), PlainStep(backbone.model)
        whole_t = t.contiguous()
        plain.attend = clock.timed(plain_attention)

        def plain_step() -> object:
            return plain(x, whole_t, padded.states_BLC, padded.mask_BL)

        attention_ms = attention_inside(plain_step, clock)
        plain.attend = plain_attention
        return plain_step, attention_ms, ["torch's choice"]
    attends = backbone.put_plan(variant.masks, variant.frames, variant.guided, kernel)
    text = backbone.prepare_text(backbone.network_text(variant.guided))

    def eager_step() -> object:
        with backbone.eagerly():
            return backbone.denoise(x, t, text)

    for block, attend in zip(backbone.model.blocks, attends, strict=True):
        block.attn1.attend = clock.timed(attend)  # type: ignore[assignment]
    attention_ms = attention_inside(eager_step, clock)
    backbone.put_plan(variant.masks, variant.frames, variant.guided, kernel)
    kernels = sorted({attend.kernel for attend in attends})
    if variant.way == EAGER:
        return eager_step, attention_ms, kernels
    backbone.make_fast(compiled=True)
    return lambda: backbone.denoise(x, t, text), attention_ms, kernels


def attention_inside(step: Callable[[], object], clock: AttentionClock) -> float:
    """The median ms of all attention calls inside a step, after one step to warm up."""
    taken = []
    for _ in range(1 + ATTENTION_STEPS):
        step()
        taken.append(clock.read())
    return median(taken[1:])


def step_flops(size: ModelSize, variant: Variant) -> tuple[float, float]:
    """Floating-point operations of a step: of the self-attention's kept pairs, and of everything else.

    2 a multiplication with a weight, 4 B H D a pair. The plain way also projects its padded text in every step.
    """
    sized = size.with_frames(variant.frames)
    batch, channels, tokens = (2 if variant.guided else 1), size.channels, sized.grid.tokens
    pairs = sum(mask.kept_pair_share(sized.grid) for mask in variant.masks) * tokens**2
    attention = 4.0 * batch * channels * pairs
    text = size.padded_tokens if variant.way == PLAIN else size.text_tokens
    if variant.guided and variant.way != PLAIN:
        text = max(text, size.null_tokens)
    block = 2 * 14 * channels**2 * tokens + 4 * channels * tokens * text
    outside = 2 * tokens * channels * 2 * 4 * LATENT_CHANNELS
    if variant.way == PLAIN:
        block += 2 * 2 * channels**2 * text
        outside += 2 * text * (size.text_width * channels + channels**2)
    return attention, float(batch * (size.layers * block + outside))


def matrix_peak(device: torch.device, dtype: torch.dtype, seconds: float, least_repeats: int) -> tuple[int, float]:
    """The side of a square matrix product and the TFLOP/s that it reaches here."""
    side = PEAK_SIDE.get(device.type, SMALL_PEAK_SIDE)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = time_in_turns({"product": lambda: left @ right}, clock_for(device), seconds, least_repeats)["product"]
    return side, 2 * side**3 / times.median / 1e9
