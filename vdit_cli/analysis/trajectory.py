"""One prompt and seed: sampled, seen at the chosen steps, and its numbers written to a file of their own.

Letters: T steps looked at, L layers, H heads, F latent frames, P sampled places of a frame.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from vdit_cli.analysis.row_statistics import RowNumbers, row_numbers
from vdit_cli.analysis.rows import RowSample
from vdit_cli.analysis.tile_mass import choose_kernel, tile_mass
from vdit_cli.artifacts.atomic import replacing
from vdit_cli.artifacts.tensors import Stored, opened
from vdit_cli.backbones.tensor_file import write_tensors
from vdit_cli.errors import EvditError
from vdit_cli.timing import Stopwatch

UNREADABLE = (EvditError, OSError, KeyError, TypeError, ValueError, RuntimeError)
"""What reading a file of numbers raises where it is damaged or another's."""
DIMENSIONS = {"mass": 5, "text": 4, "entropy_HP": 4, "first_HPF": 5, "repetition_HJL": 5}
WANTED = {name: Stored("float", (-1,) * count) for name, count in DIMENSIONS.items()}
"""The tensors of a file of numbers."""
POSITIONS = {"positions": Stored("U8", (-1,) * 7)}
"""Packed bits by step, layer, mass, head, place, frame and byte."""


@dataclass(frozen=True)
class Trajectory:
    """Which prompt and which seed, by their places in the settings, and whether its sets of positions are kept."""

    prompt: int
    seed: int
    keeps_positions: bool

    def file(self, folder: Path) -> Path:
        """Where its numbers stand in the folder of a run."""
        return folder / "samples" / f"prompt-{self.prompt:04d}-seed-{self.seed:02d}.safetensors"

    def positions_file(self, folder: Path) -> Path:
        """Where its sets of positions stand until they have been compared."""
        return self.file(folder).with_suffix(".positions.safetensors")

    def is_done(self, folder: Path) -> bool:
        """Whether its files are there and can be read; those that can't are made again."""
        try:
            SampleNumbers.read(self.file(folder))
            if self.keeps_positions:
                check_positions(self.positions_file(folder))
        except EvditError:
            return False
        return True


def trajectories(prompts: int, seeds: int) -> tuple[Trajectory, ...]:
    """Every prompt with the first seed, and the first prompt with every seed; positions of two prompts are compared."""
    first = [Trajectory(prompt, 0, prompt < 2) for prompt in range(prompts)]
    return (*first, *(Trajectory(0, seed, True) for seed in range(1, seeds)))


@dataclass(frozen=True)
class SampleNumbers:
    """Numbers of one trajectory: tile masses (T, L, H, F, F), text masses (T, L, H, F) and those of sampled rows.

    `seconds` by phase and `peak` in bytes are those of making it; `kernel` summed the tiles.
    """

    mass: Tensor
    text: Tensor
    entropy_HP: Tensor
    first_HPF: Tensor
    repetition_HJL: Tensor
    seconds: Mapping[str, float]
    peak: int
    kernel: str

    @staticmethod
    def read(path: Path) -> SampleNumbers:
        """The numbers in a file. Raises EvditError (exit 2) for a damaged one."""
        try:
            with opened(path, "pt", wanted=WANTED) as file:
                told = file.metadata()
                tensors = {key: file.get_tensor(key) for key in WANTED}
            seconds = json.loads(told["seconds"])
            return SampleNumbers(**tensors, seconds=seconds, peak=int(told["peak"]), kernel=told["kernel"])
        except UNREADABLE as error:
            raise damaged(path, error) from error


def check_positions(path: Path) -> None:
    """Raise EvditError (exit 2) for a file of positions that is missing or damaged."""
    try:
        with opened(path, wanted=POSITIONS):
            pass
    except UNREADABLE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> EvditError:
    """The error for a file of numbers that can't be read: it can be made again."""
    return EvditError(
        f"{path} can't be read: {error}", where=str(path), next_steps=["the same command again, which makes it anew"]
    )


class Collected:
    """The numbers of one trajectory as they come in, a layer of a step at a time."""

    def __init__(
        self, sample: RowSample, layers: tuple[int, ...], steps: tuple[int, ...], keeps_positions: bool
    ) -> None:
        self.sample = sample
        self.layers = layers
        self.steps = steps
        self.keeps_positions = keeps_positions
        self.clock = Stopwatch()
        self.kernel = ""
        self.masses: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.rows: dict[tuple[int, int], RowNumbers] = {}

    def see(self, layer: int, step: int, q_NHD: Tensor, k_NHD: Tensor) -> None:
        """Take the numbers of one site's queries and keys; neither is kept."""
        with self.clock.phase("statistics"):
            self.kernel = choose_kernel(q_NHD.device, q_NHD.shape[-1])
            mass, text = tile_mass(q_NHD, k_NHD, self.sample.grid, self.kernel)
            self.masses[step, layer] = mass.double().cpu(), text.double().cpu()
            self.rows[step, layer] = row_numbers(q_NHD, k_NHD, self.sample)

    def write(self, trajectory: Trajectory, folder: Path, seconds: Mapping[str, float], peak: int) -> None:
        """Write what was collected: the positions first, so that a trajectory with its numbers is whole."""
        order = [(step, layer) for step in self.steps for layer in self.layers]
        shape = (len(self.steps), len(self.layers))
        rows = RowNumbers.stacked([self.rows[key] for key in order])
        by_name = {name.name: getattr(rows, name.name).unflatten(0, shape) for name in fields(RowNumbers)}
        positions = by_name.pop("positions")
        if self.keeps_positions:
            _save(trajectory.positions_file(folder), {"positions": positions}, {})
        mass, text = (torch.stack([self.masses[key][part] for key in order]).unflatten(0, shape) for part in (0, 1))
        told = {"seconds": json.dumps({**seconds, **self.clock.seconds}), "peak": str(peak), "kernel": self.kernel}
        _save(trajectory.file(folder), {"mass": mass, "text": text, **by_name}, told)


def _save(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> None:
    with replacing(path) as beside:
        write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, told)
