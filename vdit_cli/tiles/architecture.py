"""What of a transformer decides whether a mask plan fits it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A transformer's class and the sizes of its self-attention: `layers` of `heads`, each `head_dim` wide."""

    transformer: str
    layers: int
    heads: int
    head_dim: int

    def __str__(self) -> str:
        """As in "OpenSoraT2V of 8 layers of 6 heads x 48"."""
        return f"{self.transformer} of {self.layers} layers of {self.heads} heads x {self.head_dim}"
