"""What the Triton kernels share: which rows a program owns, which rows it walks over, and how a head width is split.

A tile mask is symmetric, so the rows that a block of queries sees, and the rows that see a block of keys, are one
walk: 0..N for a block of the first G, else 0..G followed by the block's own frame. A walk is counted without a gap, and
places from G on are moved by `jump` to the frame: no list of ranges is stored, and only a walk's last step is masked.

Letters: B batch, N tokens in the order of the passes, H heads, D head width, G tokens that everyone sees, S tokens a
frame. A *sequence* is one head of one video.
"""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from vdit_cli.attention.kernels.walk import Walk

INTERPRETED = not isinstance(tl.sum, triton.JITFunction)
"""Whether Triton was imported under TRITON_INTERPRET=1, so that kernels run on the CPU, slowly, by numpy."""
WIDENED = tl.constexpr(INTERPRETED)
"""Whether tiles are multiplied in float32: the interpreter takes bfloat16 for whole numbers there."""
SIZES = ("tokens", "everyone", "frame", "others", "sequences", "heads", "rough")
"""Kernel arguments that no code is generated for: a video of another length runs the same binary."""
TUNED_FOR = ("W0", "W1", "W2", "rough")
"""Kernel arguments that a choice of block sizes is kept for; Triton adds the types of the tensors."""


def programs(walk: Walk, block: int, sequences: int) -> int:
    """Programs that own `block` rows each; none owns rows of two frames."""
    blocks = triton.cdiv(walk.everyone, block) + walk.others * triton.cdiv(walk.frame, block)
    return blocks * sequences


def rough(walk: Walk) -> int:
    """The length to a factor of two, in powers of two: one choice of block sizes holds for about as much work."""
    return walk.tokens.bit_length()


def widths(head_dim: int) -> tuple[int, int, int]:
    """A head width as up to three powers of two, largest first, then zeros: 96 = 64 + 32. At most 128, 16 a step."""
    found = [power for power in (128, 64, 32, 16) if head_dim & power]
    if sum(found) != head_dim or len(found) > 3:
        raise ValueError(f"head width {head_dim} is no multiple of 16 up to 128")
    return tuple(found + [0] * (3 - len(found)))  # type: ignore[return-value]


def strides(*tensors_BNHD: Tensor) -> list[int]:
    """The strides of batch, token and head of each tensor, one after another."""
    return [x.stride(axis) for x in tensors_BNHD for axis in range(3)]


def is_wide(*tensors_BNHD: Tensor) -> bool:
    """Whether a row of some tensor lies further from its video's first than 32 bits can say."""
    return any(x.shape[1] * x.stride(1) + x.shape[-1] >= 2**31 for x in tensors_BNHD)


def tuned(*shapes: tuple[int, int, int, int]) -> Callable[[Any], Any]:
    """Choose block sizes, (rows owned, rows a step, warps, stages), by the clock once for each entry of TUNED_FOR.

    The choice is kept in Triton's own cache folder, so that later processes on the machine compute the same digits.
    """
    choices = [_choice(*shape) for shape in shapes] + [FLOAT32]
    return triton.autotune(
        configs=[INTERPRETER] if INTERPRETED else choices,
        key=TUNED_FOR,
        prune_configs_by={"early_config_prune": _fitting},
        cache_results=True,
    )


def _choice(own: int, walk: int, warps: int, stages: int) -> triton.Config:
    """Triton's form of a choice; a product and a sum in one instruction is what softmax is counted in."""
    return triton.Config({"OWN": own, "WALK": walk, "enable_fp_fusion": True}, num_warps=warps, num_stages=stages)


FLOAT32 = _choice(32, 32, 4, 1)
"""The one choice for float32, whose exact products run without tensor cores: for tests, not for speed."""
INTERPRETER = _choice(64, 32, 4, 1)
"""The one choice in the interpreter: several steps and a rest at the few tokens that it has time for."""


def _fitting(choices: list[triton.Config], arguments: dict[str, Any], **_constants: int) -> list[triton.Config]:
    """The choices for the type of the queries."""
    if len(choices) == 1:
        return choices
    return [FLOAT32] if arguments["Q"].element_size() == 4 else [each for each in choices if each is not FLOAT32]


@triton.jit
def place(program, tokens, everyone, frame, others, sequences, OWN: tl.constexpr):
    """What a program does: (sequence, first row owned, end of its rows' frame, length of its walk, jump).

    Long walks get the lowest numbers, those of all sequences, so that the launch ends in short ones.
    """
    long_blocks = tl.cdiv(everyone, OWN)
    frame_blocks = tl.cdiv(frame, OWN)
    if program < long_blocks * sequences:
        sequence = program // long_blocks
        first = (program % long_blocks) * OWN
        stop = everyone
        length = tokens
        jump = 0
    else:
        rest = program - long_blocks * sequences
        sequence = rest // (others * frame_blocks)
        block = rest % (others * frame_blocks)
        start = everyone + (block // frame_blocks) * frame
        first = start + (block % frame_blocks) * OWN
        stop = start + frame
        length = everyone + frame
        jump = start - everyone
    return sequence, first, stop, length, jump


@triton.jit
def head_of(pointer, sequence, heads, stride_b, stride_h):
    """Where the first row of a sequence lies in a (B, N, H, D) tensor."""
    return pointer + (sequence // heads).to(tl.int64) * stride_b + (sequence % heads).to(tl.int64) * stride_h


@triton.jit
def load(
    base, rows, stride_n, kept, FIRST: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, MASKED: tl.constexpr
):
    """Columns FIRST..FIRST+WIDTH of `rows`; zeros, and no memory touched, where MASKED and not `kept`."""
    if WIDE:
        rows = rows.to(tl.int64)
    pointers = base + (rows * stride_n)[:, None] + (FIRST + tl.arange(0, WIDTH))[None, :]
    mask = kept[:, None] if MASKED else None
    other = 0.0 if MASKED else None
    tile = tl.load(pointers, mask=mask, other=other)
    if WIDENED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store(base, rows, stride_n, kept, tile, FIRST: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr):
    """Write `tile` to columns FIRST..FIRST+WIDTH of the `rows` that are `kept`, in the type of the memory."""
    if WIDE:
        rows = rows.to(tl.int64)
    pointers = base + (rows * stride_n)[:, None] + (FIRST + tl.arange(0, WIDTH))[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=kept[:, None])
