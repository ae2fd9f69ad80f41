"""A video that is written as its frames come, so that not all of it need be in memory. T frames, H and W pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frames:
    """Frames uint8 (H, W, 3) one at a time, where a writer takes an array of all: `shape` is that array's.

    `made` begins anew with each call.
    """

    shape: tuple[int, int, int, int]
    made: Callable[[], Iterator[np.ndarray]]

    def __len__(self) -> int:
        """T."""
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, from the first on."""
        return self.made()
