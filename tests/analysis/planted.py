"""Attention with planted structure: queries and keys whose tile masses and sets of positions are known beforehand.

A score is M[frame of q, frame of k] + place of q . place of k, a sum whose softmax is a product: so tile (i, j) holds
exactly softmax(M)[i, j] whatever the places say, and tiles are alike up to a factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tests.sampling.fakes import GaussianBackbone
from vdit_cli.backbones.base import Defaults
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.timing import Silent

HEADS, PLACE_WIDTH = 2, 8
LAYERS = ("diagonal", "bands", "global", "uniform", "unstable", "stable")
GLOBAL_FRAMES = (0, 4)


def frame_scores(kind: str, frames: int) -> np.ndarray:
    """M (F, F) of a kind of layer."""
    apart = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    if kind == "diagonal":
        return 3.0 * np.eye(frames)
    if kind == "bands":
        return -1.0 * apart
    if kind == "global":
        return 4.0 * np.isin(np.arange(frames), GLOBAL_FRAMES)[None, :] * np.ones((frames, 1))
    return np.zeros((frames, frames))


def true_mass(kind: str, frames: int) -> np.ndarray:
    """The tile masses that `frame_scores` gives, in float64."""
    shares = np.exp(frame_scores(kind, frames))
    return shares / shares.sum(axis=1, keepdims=True)


def planted(kind: str, grid: VideoGrid, seed: int) -> tuple[Tensor, Tensor]:
    """q and k (N, H, D) of a kind of layer; `seed` is what an unstable layer's places depend on."""
    width = grid.frames + PLACE_WIDTH
    random = torch.Generator().manual_seed(seed if kind == "unstable" else 7)
    strength = {"unstable": 2.0, "stable": 2.0, "diagonal": 1.0, "bands": 1.0}.get(kind, 0.0)
    frames = torch.arange(grid.video_tokens) // grid.frame_tokens
    scores = torch.as_tensor(frame_scores(kind, grid.frames), dtype=torch.float32)
    q = torch.zeros(grid.tokens, HEADS, width)
    k = torch.zeros(grid.tokens, HEADS, width)
    video = slice(grid.text_before, grid.text_before + grid.video_tokens)
    q[video, :, : grid.frames] = scores[frames][:, None]
    k[video, :, : grid.frames] = nn.functional.one_hot(frames, grid.frames).float()[:, None]
    if kind == "unstable":
        # Every token is its own: no two tiles, prompts, seeds or steps agree.
        shape = (grid.video_tokens, HEADS, PLACE_WIDTH)
        q[video, :, grid.frames :] = torch.randn(shape, generator=random)
        k[video, :, grid.frames :] = torch.randn(shape, generator=random) * strength
    else:
        shape = (grid.frame_tokens, HEADS, PLACE_WIDTH)
        q[video, :, grid.frames :] = torch.randn(shape, generator=random).repeat(grid.frames, 1, 1)
        k[video, :, grid.frames :] = (torch.randn(shape, generator=random) * strength).repeat(grid.frames, 1, 1)
    return q * width**0.5, k


def dense_shares(q_NHD: Tensor, k_NHD: Tensor) -> np.ndarray:
    """The whole map (H, N, N) in float64: what the streamed numbers are held to."""
    scores = torch.einsum("qhd,khd->hqk", q_NHD.double(), k_NHD.double()) * q_NHD.shape[-1] ** -0.5
    return scores.softmax(dim=-1).numpy()


def dense_tile_mass(shares_HNN: np.ndarray, grid: VideoGrid) -> np.ndarray:
    """Tile masses (H, F, F) of a whole map, tile by tile."""
    mass = np.zeros((len(shares_HNN), grid.frames, grid.frames))
    for i in range(grid.frames):
        for j in range(grid.frames):
            own, other = grid.frame_range(i), grid.frame_range(j)
            tile = shares_HNN[:, own.start : own.stop, other.start : other.stop]
            mass[:, i, j] = tile.sum(axis=(1, 2)) / grid.frame_tokens
    return mass


class Site(nn.Module):
    """An attention site with planted queries and keys."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.attend = None

    def run(self, grid: VideoGrid, seeds: Sequence[int]) -> None:
        """Attend, one row of the batch a seed."""
        q, k = (torch.stack(each) for each in zip(*(planted(self.kind, grid, seed) for seed in seeds), strict=True))
        if self.attend is not None:
            out = self.attend(q, k, k)
            assert out.shape == k.shape


class PlantedBackbone(GaussianBackbone):
    """Gaussian data seen through attention of all the planted kinds; the null branch's is another."""

    name = "planted"
    architecture = Architecture("Planted", len(LAYERS), HEADS, 4)
    defaults = Defaults(video_frames=29, height=64, width=64, fps=8, steps=5, guidance=2.0, scheduler="ddim")

    def __init__(self, kinds: Sequence[str] = LAYERS) -> None:
        super().__init__()
        self.sites = [Site(kind) for kind in kinds]
        self.architecture = replace(self.architecture, layers=len(self.sites))
        self.poison: tuple[int, int] | None = None
        """(layer, call) at which queries become NaN."""

    def attention_sites(self) -> list[Site]:
        """The sites, one a layer."""
        return self.sites

    def denoise(self, x_BCFhw: Tensor, t_B: Tensor, text) -> Tensor:  # noqa: ANN001
        """What the Gaussian backbone says, after a call of each site; the seed is told by prompt, step and noise."""
        grid = self.grid(*self.size_of(x_BCFhw))
        rows = range(len(x_BCFhw))
        told = [
            int(1e4 * abs(float(x_BCFhw[row].sum()))) + 17 * int(t_B[row]) + int(1e3 * float(text.states_BLC[row, 0]))
            for row in rows
        ]
        for layer, site in enumerate(self.sites):
            if self.poison == (layer, len(self.batches)):
                nan = float("nan")
                site.attend(*(torch.full((len(told), grid.tokens, HEADS, 4), nan) for _ in range(3)))
            site.run(grid, told)
        return super().denoise(x_BCFhw, t_B, text)

    @staticmethod
    def size_of(x_BCFhw: Tensor) -> tuple[int, int, int]:
        """Pixel frames, height and width of latents."""
        frames, height, width = x_BCFhw.shape[2:]
        return 4 * (frames - 1) + 1, 8 * height, 8 * width


@contextmanager
def opened_as(backbone: GaussianBackbone, monkeypatch) -> Iterator[None]:  # noqa: ANN001
    """Whatever model is asked for, it is this one."""
    with monkeypatch.context() as patch:
        patch.setattr("vdit_cli.sampling.trajectory.find_source", lambda model, where: model)
        patch.setattr("vdit_cli.sampling.trajectory.open_backbone", lambda source, **options: backbone)
        yield


class StopsAfter(Silent):
    """A person who presses Ctrl-C after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def advance(self, note: str = "") -> None:
        self.left -= 1

    def should_stop(self) -> bool:
        return self.left <= 0
