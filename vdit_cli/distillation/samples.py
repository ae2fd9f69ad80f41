"""A rank's part of a batch: which samples, and random numbers that each sample keeps wherever it is computed.

A sample is known by its number among all samples of the training, iteration x batch_size + place in the batch. What
is drawn for it depends on the seed, that number and a name, so any number of ranks and parts draws the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vdit_cli.errors import EvditError

LossTerms = dict[str, Tensor]
"""Named scalar tensors; `"loss"` is the one that is minimised."""


def seeded_generators(seed: int, iteration: int, device: torch.device) -> tuple[torch.Generator, torch.Generator]:
    """Two generators for one iteration, on the CPU (what is drawn) and on `device` (noise)."""
    number = (seed * 1_000_003 + iteration) * 2
    on_cpu = torch.Generator().manual_seed(number)
    return on_cpu, torch.Generator(device=device).manual_seed(number + 1)


@dataclass(frozen=True)
class Samples:
    """`count` samples from place `first` of an iteration's batch of `batch_size`, computed on `device`."""

    seed: int
    iteration: int
    first: int
    count: int
    batch_size: int
    device: torch.device

    @property
    def places(self) -> slice:
        """Where the samples stand in the whole batch: `whole[samples.places]`."""
        return slice(self.first, self.first + self.count)

    @property
    def numbers(self) -> range:
        """The samples' numbers among all of the training."""
        start = self.iteration * self.batch_size + self.first
        return range(start, start + self.count)

    def items(self, total: int) -> list[int]:
        """Which of `total` items each sample is: all items in random order, then all again in another, and so on."""
        epochs = {number // total: () for number in self.numbers}
        orders = {
            epoch: torch.randperm(total, generator=self._generator("order", epoch, torch.device("cpu"))).tolist()
            for epoch in epochs
        }
        return [orders[number // total][number % total] for number in self.numbers]

    def normal(self, name: str, *shape: int) -> Tensor:
        """Standard normal numbers called `name`, (count, *shape), float32, drawn on the device."""
        return self._drawn(name, self.device, lambda by: torch.randn(shape, generator=by, device=self.device))

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Numbers in [0, 1) called `name`, (count, *shape), the same on every device."""
        return self._drawn(name, torch.device("cpu"), lambda by: torch.rand(shape, generator=by))

    def integers(self, name: str, below: int, *shape: int) -> Tensor:
        """Whole numbers in 0 .. below - 1 called `name`, (count, *shape), the same on every device."""
        return self._drawn(name, torch.device("cpu"), lambda by: torch.randint(below, shape, generator=by))

    def generators(self) -> tuple[torch.Generator, torch.Generator]:
        """Fresh generators of the whole batch, on the CPU and on the device: draw it all, then take `places`."""
        return seeded_generators(self.seed, self.iteration, self.device)

    def _drawn(self, name: str, device: torch.device, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        each = [draw(self._generator(name, number, device)) for number in self.numbers]
        return torch.stack(each).to(self.device)

    def _generator(self, name: str, number: int, device: torch.device) -> torch.Generator:
        told = hashlib.blake2b(f"{self.seed}/{name}/{number}".encode(), digest_size=8).digest()
        return torch.Generator(device=device).manual_seed(int.from_bytes(told, "little") >> 1)


@dataclass(frozen=True)
class SplitLoss:
    """A loss that takes a part of a batch; each term is a mean over the part's samples."""

    of: Callable[[Samples], LossTerms]


WholeLoss = Callable[[int, torch.Generator, torch.Generator], LossTerms]
"""`loss(iteration, cpu_generator, device_generator)`: a loss that draws its whole batch and can't be split."""


def split_loss(loss: SplitLoss | WholeLoss, parts: int) -> SplitLoss:
    """The loss as one of samples. Raises EvditError (2) for a loss of whole batches that is to be split."""
    if isinstance(loss, SplitLoss):
        return loss
    if parts > 1:
        raise EvditError(
            f"this training takes its batch whole: it can't be split into {parts} parts",
            next_steps=["one rank and accumulation=1"],
        )
    return SplitLoss(lambda samples: loss(samples.iteration, *samples.generators()))


def parts_of(
    seed: int, iteration: int, batch_size: int, device: torch.device, rank: int, ranks: int, accumulation: int
) -> list[Samples]:
    """One rank's parts of a batch: neighbouring samples, every rank as many parts, sizes one apart at most.

    Raises ValueError for a batch with fewer samples than parts, which `check_parts` of a stage refuses before.
    """
    total = ranks * accumulation
    if batch_size < total:
        raise ValueError(f"{batch_size} samples can't be {total} parts")
    edges = [part * batch_size // total for part in range(rank * accumulation, (rank + 1) * accumulation + 1)]
    return [
        Samples(seed, iteration, first, end - first, batch_size, device)
        for first, end in zip(edges, edges[1:], strict=False)
    ]
