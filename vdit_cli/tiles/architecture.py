"""What of a transformer decides whether a mask plan fits it."""

from __future__ import annotations

from dataclasses import dataclass

from vdit_cli.reader import Count


@dataclass(frozen=True)
class Architecture:
    """A transformer's class and the sizes of its self-attention: `layers` of `heads`, each `head_dim` wide."""

    transformer: str
    layers: Count
    heads: Count
    head_dim: Count

    def __str__(self) -> str:
        """As in "OpenSoraT2V of 8 layers of 6 heads x 48"."""
        return f"{self.transformer} of {self.layers} layers of {self.heads} heads x {self.head_dim}"
