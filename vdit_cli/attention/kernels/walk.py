"""A tile mask as four numbers, in the order of its passes; what a kernel needs that walks over the rows it sees.

Letters: N tokens in the order of the passes, G tokens that everyone sees, S tokens a frame.
"""

from __future__ import annotations

from typing import NamedTuple

from vdit_cli.tiles.passes import Pass


class Walk(NamedTuple):
    """N `tokens`: the first G (`everyone`) see all and are seen by all, then come `others` frames of S tokens."""

    tokens: int
    everyone: int
    frame: int
    others: int


def walk_of(passes: tuple[Pass, ...]) -> Walk:
    """The walk that computes exactly the pairs of `passes`. Raises ValueError for passes that no tile mask gives."""
    everyone = passes[0].queries
    tokens = len(passes[0].keys[0])
    everything, local, own = range(tokens), range(len(everyone), tokens), passes[-1]
    expected = [Pass(everyone, (everything,))]
    if local:
        expected += [Pass(local, (everyone,)), Pass(local, (local,), parts=own.parts)]
    if everyone.start != 0 or len(local) % own.parts or list(passes) != expected:
        raise ValueError(f"these passes are not those of a tile mask: {passes}")
    return Walk(tokens, len(everyone), len(local) // own.parts, own.parts) if local else Walk(tokens, tokens, 1, 0)
