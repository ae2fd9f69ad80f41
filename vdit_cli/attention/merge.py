"""What passes are made of and joined by: pieces that are views of whole tensors, and the log-sum-exp of their keys.

Letters: B batch, N tokens in the order of the passes, H heads, D head width, P parts of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vdit_cli.attention.kernels import triton
from vdit_cli.tiles.passes import Pass

Part = tuple[Tensor, Tensor]
"""What attention over some of the keys gives: output (B, N, H, D) and log-sum-exp (B, N, H)."""
JOINED_AT_ONCE = 1 << 16
"""Numbers of a half type that are in float32 at a time, or a sixteenth where that is more: a quarter of the output."""


class Piece(NamedTuple):
    """A dense call of `queries` against `keys`, of all videos, or of one `video` in `parts` diagonal blocks.

    So all that it takes are views: the blocks of several videos do not lie at one distance from each other. `joins`
    says whether an earlier piece has written what these queries find among other keys.
    """

    queries: range
    keys: range
    joins: bool
    video: int | None = None
    parts: int = 1

    def of_queries(self, x_BNHD: Tensor) -> Tensor:
        """The queries' places of x as (B or P, N/P, H, D), a view."""
        return self._cut(x_BNHD, self.queries)

    def of_keys(self, x_BNHD: Tensor) -> Tensor:
        """The keys' places of x as (B or P, N/P, H, D), a view."""
        return self._cut(x_BNHD, self.keys)

    def operands(self, q_BNHD: Tensor, k_BNHD: Tensor, v_BNHD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What its dense call takes, heads before tokens."""
        q, k, v = self.of_queries(q_BNHD), self.of_keys(k_BNHD), self.of_keys(v_BNHD)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _cut(self, x_BNHD: Tensor, places: range) -> Tensor:
        if self.video is None:
            return x_BNHD[:, places.start : places.stop]
        return x_BNHD[self.video, places.start : places.stop].unflatten(0, (self.parts, -1))


def pieces(passes: Sequence[Pass], batch: int) -> Iterator[Piece]:
    """The dense calls of `passes` on so many videos; passes that share their queries follow each other."""
    before: range | None = None
    for each in passes:
        for keys in each.keys:
            joins = each.queries == before
            if each.parts == 1:
                yield Piece(each.queries, keys, joins)
            else:
                yield from (Piece(each.queries, keys, joins, video, each.parts) for video in range(batch))
            before = each.queries


def join(into: Part, other: Part) -> None:
    """Attention over two disjoint sets of keys from that over each, written to the first of the two."""
    if triton.joins(into, other):
        triton.join(into, other, into)
        return
    (out, lse), (out2, lse2) = into, other
    share2 = torch.sigmoid(lse2 - lse).unsqueeze(-1)
    if out.dtype == share2.dtype:
        out.lerp_(out2, share2)
    else:
        tokens = max(1, out.shape[1] * JOINED_AT_ONCE // out.numel(), out.shape[1] // 16)
        for some, some2, share in zip(*(x.split(tokens, dim=1) for x in (out, out2, share2)), strict=True):
            some.copy_(some.to(share.dtype).lerp_(some2.to(share.dtype), share))
    torch.logaddexp(lse, lse2, out=lse)
