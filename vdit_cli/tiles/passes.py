"""A tile mask as a short list of dense attention calls, in a token order that puts everything global first.

In that order a mask needs no masked kernel: global queries see all keys, the other queries see the global keys, and
each of the other frames sees itself. Letters: F latent frames, S tokens a frame, N tokens, k global frames,
G = text + k*S tokens that everyone sees.
"""

from __future__ import annotations

from dataclasses import dataclass

from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask


@dataclass(frozen=True)
class Pass:
    """One dense attention call: `queries` against all of `keys`, as places in the order of `token_order`.

    With `parts` > 1 it is block-diagonal: queries and each key range are cut into `parts` equal pieces, and piece p of
    the queries sees piece p of the keys only, so the pieces are a batch of one call.
    """

    queries: range
    keys: tuple[range, ...]
    parts: int = 1

    @property
    def pairs(self) -> int:
        """Token pairs that this call computes."""
        return len(self.queries) * sum(map(len, self.keys)) // self.parts


def token_order(mask: TileMask, grid: VideoGrid, frame_order: tuple[int, ...] | None = None) -> tuple[range, ...]:
    """The tokens of `grid` with text and global frames first, each side in its own order, as the fewest ranges.

    One range alone means that the order is the grid's own and nothing has to be gathered. `frame_order` names the
    frame that each place of the grid holds, where that is not its own (`MaskPlan.frame_order`). Raises ValueError for
    one that does not name each frame once.
    """
    mask.check_grid(grid)
    held = tuple(range(grid.frames)) if frame_order is None else frame_order
    if sorted(held) != list(range(grid.frames)):
        raise ValueError(f"{frame_order} is no order of {grid.frames} frames")
    everyone = set(mask.global_frames)
    order = [range(grid.text_before)]
    order += [grid.frame_range(place) for place, frame in enumerate(held) if frame in everyone]
    order += [range(grid.tokens - grid.text_after, grid.tokens)]
    order += [grid.frame_range(place) for place, frame in enumerate(held) if frame not in everyone]
    return _joined(order)


def passes(mask: TileMask, grid: VideoGrid) -> tuple[Pass, ...]:
    """The dense calls that together compute each kept pair of `mask` on `grid` exactly once: one, or three."""
    mask.check_grid(grid)
    everything = range(grid.tokens)
    if mask.is_dense:
        return (Pass(everything, (everything,)),)
    local_frames = grid.frames - len(mask.global_frames)
    first_local = grid.tokens - local_frames * grid.frame_tokens
    everyone, local = everything[:first_local], everything[first_local:]
    return Pass(everyone, (everything,)), Pass(local, (everyone,)), Pass(local, (local,), parts=local_frames)


def _joined(ranges: list[range]) -> tuple[range, ...]:
    """The same numbers in the same order with neighbours joined and empty ranges left out."""
    joined: list[range] = []
    for piece in ranges:
        if not piece:
            continue
        if joined and joined[-1].stop == piece.start:
            joined[-1] = range(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return tuple(joined)
