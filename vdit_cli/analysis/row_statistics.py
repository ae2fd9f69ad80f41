"""Numbers of sampled query rows, one head at a time: entropy, the first frame's difference, repetition, positions.

Letters: N tokens, H heads, D head width, F latent frames, S tokens a frame, P sampled places of a frame, J groups of
places that a jackknife leaves out (replicate 0 leaves out none), M masses of sets of positions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vdit_cli.analysis.rows import RowSample

MASSES = (0.9, 0.95, 0.99)
"""Shares of the mass that sets of positions hold. Source: arXiv 2502.06155, section 2."""
LEAST_SPREAD = 1e-5
"""A tile whose elements spread less than this share of their mean has no pattern to correlate (float32 noise)."""


@dataclass(frozen=True)
class RowNumbers:
    """What the sampled rows of one map say, on the CPU.

    `entropy_HP` in nats, mean over frames; `first_HPF` mean |A[0, j] - A[0, 0]| over a row; `repetition_HJL` mean
    correlation of tiles by |lag| (F of them), over all equal lags, over different lags (L = F + 2, NaN where there is
    none); `positions` (M, H, P, F, bytes) whether a key is in the smallest set that holds that mass, eight keys a byte.
    """

    entropy_HP: Tensor
    first_HPF: Tensor
    repetition_HJL: Tensor
    positions: Tensor

    @staticmethod
    def stacked(each: list[RowNumbers]) -> RowNumbers:
        """Several maps' numbers, along an axis in front."""
        return RowNumbers(*(torch.stack([getattr(one, name.name) for one in each]) for name in fields(RowNumbers)))


def row_numbers(q_NHD: Tensor, k_NHD: Tensor, sample: RowSample) -> RowNumbers:
    """The numbers of dense attention's sampled rows, exact for those rows, computed in float32 where q is."""
    tokens = torch.as_tensor(sample.tokens(), device=q_NHD.device)
    keys = torch.as_tensor(sample.keys, device=q_NHD.device)
    heads = []
    for head in range(q_NHD.shape[1]):
        at_least_float32 = torch.float64 if q_NHD.dtype == torch.float64 else torch.float32
        queries_PFD = q_NHD[tokens, head].to(at_least_float32) * q_NHD.shape[-1] ** -0.5
        scores_PFN = queries_PFD @ k_NHD[:, head].to(at_least_float32).T
        heads.append(_of_one_head(scores_PFN, keys, sample))
    entropy, first, repetition, positions = zip(*heads, strict=True)
    return RowNumbers(torch.stack(entropy), torch.stack(first), torch.stack(repetition), torch.stack(positions, dim=1))


def _of_one_head(scores_PFN: Tensor, keys_PK: Tensor, sample: RowSample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grid = sample.grid
    lse_PF = scores_PFN.logsumexp(dim=-1)
    shares_PFN = (scores_PFN - lse_PF[..., None]).exp_()
    entropy_PF = lse_PF - (shares_PFN * scores_PFN).sum(dim=-1)
    video = shares_PFN[..., grid.text_before : grid.text_before + grid.video_tokens]
    tiles_PFFS = video.unflatten(-1, (grid.frames, grid.frame_tokens))
    first_PF = (tiles_PFFS[:, 0] - tiles_PFFS[:, 0, :1]).abs().mean(dim=-1)
    return (
        entropy_PF.mean(dim=1).cpu(),
        first_PF.cpu(),
        _repetition(tiles_PFFS, sample.groups),
        positions_of(shares_PFN, keys_PK).cpu(),
    )


def _repetition(tiles_PFFS: Tensor, groups: list[range]) -> Tensor:
    """(J, F + 2) mean correlations of tiles, J = 1 + the number of groups, float64 on the CPU."""
    places, frames, _, size = tiles_PFFS.shape
    tiles = tiles_PFFS.permute(1, 2, 0, 3).flatten(0, 1)
    means_T = tiles.mean(dim=(1, 2))
    centred_TPS = tiles - means_T[:, None, None]
    # Centred first, so that float32 products suffice; what a group's mean still departs from it is taken off below.
    parts = [centred_TPS[:, group.start : group.stop].flatten(1) for group in groups]
    products_GTT = torch.stack([part @ part.T for part in parts]).cpu().double()
    sums_GT = torch.stack([part.sum(dim=1) for part in parts]).cpu().double()
    counts_G = torch.tensor([len(group) * size for group in groups], dtype=torch.float64)
    products, sums, counts = (_with_left_out(x) for x in (products_GTT, sums_GT, counts_G))
    if len(groups) == 1:
        products, sums, counts = products[:1], sums[:1], counts[:1]
    average = sums / counts[:, None]
    covariance = products / counts[:, None, None] - average[:, :, None] * average[:, None, :]
    variance = covariance.diagonal(dim1=1, dim2=2).clamp_min(0)
    spread = variance.sqrt()
    spread = torch.where(spread > LEAST_SPREAD * means_T.cpu().double(), spread, torch.nan)
    return _by_lag(covariance / (spread[:, :, None] * spread[:, None, :]), frames)


def _with_left_out(x_G: Tensor) -> Tensor:
    """The sum over groups, then that sum without each group in turn."""
    total = x_G.sum(dim=0, keepdim=True)
    return torch.cat([total, total - x_G])


def _by_lag(correlation_JTT: Tensor, frames: int) -> Tensor:
    """(J, F + 2): means over pairs of different tiles of equal lag, by |lag| and over all, then of different lags."""
    lag_T = (torch.arange(frames)[None, :] - torch.arange(frames)[:, None]).flatten()
    is_same = lag_T[:, None] == lag_T[None, :]
    bin_TT = torch.where(is_same, lag_T.abs()[:, None], frames)
    is_pair = ~torch.eye(len(lag_T), dtype=torch.bool)
    is_known = correlation_JTT.isfinite() & is_pair
    values = torch.where(is_known, correlation_JTT, 0.0).flatten(1)
    bins = bin_TT.flatten().expand_as(values)
    empty = values.new_zeros(len(values), frames + 1)
    sums = empty.scatter_add(1, bins, values)
    counts = empty.scatter_add(1, bins, is_known.flatten(1).to(values.dtype))
    same = sums[:, :frames].sum(dim=1, keepdim=True) / counts[:, :frames].sum(dim=1, keepdim=True)
    means = sums / counts  # NaN where there is no pair
    return torch.cat([means[:, :frames], same, means[:, frames:]], dim=1)


def positions_of(shares_PFN: Tensor, keys_PK: Tensor) -> Tensor:
    """(M, P, F, ceil(K / 8)) bytes: is a position in the smallest set that holds each of MASSES of all rows' mass?

    The sets are of all positions (P, F, N); what is kept of them is the K keys of each place. Equal shares at a set's
    edge are all in it.
    """
    falling = shares_PFN.flatten().sort(descending=True).values
    held = falling.cumsum(0, dtype=torch.float64 if falling.device.type != "mps" else torch.float32)
    wanted = torch.tensor(MASSES, dtype=held.dtype, device=held.device) * held[-1]
    least_M = falling[torch.searchsorted(held, wanted).clamp_max(len(held) - 1)]
    kept_PFK = shares_PFN.gather(-1, keys_PK[:, None, :].expand(-1, shares_PFN.shape[1], -1))
    return packed(kept_PFK[None] >= least_M[:, None, None, None])


def packed(bits: Tensor) -> Tensor:
    """Booleans as bits of uint8 along the last axis, its end filled with zeros."""
    bits = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(dim=-1, dtype=torch.uint8)
