"""Exact tile masses of dense attention, streamed: no N x N map is ever held.

Letters: N tokens, H heads, D head width, F latent frames, S tokens a frame.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from vdit_cli.errors import EvditError, unknown_name
from vdit_cli.tiles.grid import VideoGrid

KERNELS = ("triton", "torch")
"""What can sum tiles, in order of preference."""
CHUNK_SCORES = 1 << 22
"""Most scores that the torch path holds at a time."""
WIDEST_HEAD = 256


def choose_kernel(device: torch.device, head_dim: int) -> str:
    """The first of KERNELS that runs there: "triton" on an NVIDIA or AMD GPU, else "torch"."""
    has_triton = importlib.util.find_spec("triton") is not None
    return "triton" if device.type == "cuda" and has_triton and head_dim <= WIDEST_HEAD else "torch"


def tile_mass(q_NHD: Tensor, k_NHD: Tensor, grid: VideoGrid, kernel: str | None = None) -> tuple[Tensor, Tensor]:
    """Mass that the queries of frame i give to the keys of frame j, (H, F, F), and to text, (H, F), mean over queries.

    Softmax of q k / sqrt(D) over all N keys; float32 on the device of q. `kernel` is one of KERNELS, None the first
    that runs there. Raises ValueError for shapes that do not fit `grid`, EvditError for an unknown kernel.
    """
    if q_NHD.shape != k_NHD.shape or q_NHD.ndim != 3 or len(q_NHD) != grid.tokens:
        raise ValueError(f"q {tuple(q_NHD.shape)} and k {tuple(k_NHD.shape)} do not fit {grid}")
    kernel = kernel or choose_kernel(q_NHD.device, q_NHD.shape[-1])
    if kernel == "torch":
        return _by_torch(q_NHD, k_NHD, grid)
    if kernel != "triton":
        raise unknown_name("kernel", kernel, KERNELS)
    if importlib.util.find_spec("triton") is None:
        raise EvditError("triton is not installed", next_steps=["pip install triton"])
    from vdit_cli.analysis.kernels.tile_mass import tile_mass_by_triton

    return tile_mass_by_triton(q_NHD, k_NHD, grid)


def _by_torch(q_NHD: Tensor, k_NHD: Tensor, grid: VideoGrid) -> tuple[Tensor, Tensor]:
    """As many queries of one frame at a time as CHUNK_SCORES allows, in float32 (float64 for float64)."""
    tokens, heads, head_dim = q_NHD.shape
    at_least_float32 = torch.float64 if q_NHD.dtype == torch.float64 else torch.float32
    keys_HDN = k_NHD.to(at_least_float32).permute(1, 2, 0)
    video = range(grid.text_before, grid.text_before + grid.video_tokens)
    mass = torch.zeros(heads, grid.frames, grid.frames, dtype=at_least_float32, device=q_NHD.device)
    text = mass.new_zeros(heads, grid.frames)
    step = max(1, CHUNK_SCORES // (heads * tokens))
    for frame in range(grid.frames):
        own = grid.frame_range(frame)
        for start in range(own.start, own.stop, step):
            stop = min(start + step, own.stop)
            queries_HQD = q_NHD[start:stop].to(at_least_float32).transpose(0, 1) * head_dim**-0.5
            shares_HN = (queries_HQD @ keys_HDN).softmax(dim=-1).sum(dim=1)
            mass[:, frame] += shares_HN[:, video.start : video.stop].unflatten(-1, (grid.frames, -1)).sum(dim=-1)
            text[:, frame] += shares_HN[:, : video.start].sum(dim=-1) + shares_HN[:, video.stop :].sum(dim=-1)
    return mass / grid.frame_tokens, text / grid.frame_tokens
