"""Numbers of a video: closeness to another one, motion, flicker, sharpness, distance of sets. Pure, numpy only.

A video is (T, H, W, C), T frames; uint8 counts as value / 255, floats are taken as they are, in [0, 1].
"""

from __future__ import annotations

import numpy as np


def psnr(video: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal to noise ratio in dB, 10 log10(1 / mean squared difference); infinite for equal videos.

    Raises: ValueError when the shapes differ.
    """
    if video.shape != reference.shape:
        raise ValueError(f"videos of different shapes: {video.shape} and {reference.shape}")
    error = float(np.mean(np.square(_unit(video) - _unit(reference))))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


SSIM_WINDOW = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
"""The Gaussian of 11 pixels, sigma 1.5, that SSIM looks through, before it is made to add up to 1."""


def ssim(video: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), 1 for equal videos: of each colour and frame, where the window fits.

    Raises: ValueError when the shapes differ, and for pictures below 11 x 11 pixels.
    """
    if video.shape != reference.shape or min(video.shape[1:3]) < len(SSIM_WINDOW):
        raise ValueError(f"videos of different shapes, or too small: {video.shape} and {reference.shape}")
    return float(np.mean([_ssim_of_frame(a, b) for a, b in zip(_unit(video), _unit(reference), strict=True)]))


def frechet(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    """Frechet distance of two sets of features, |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64.

    Exact for any number of rows, also below the width: with the centred rows over (N - 1)^(1/2) as A = Q R, C_a is
    R^T R, and the trace of the root is the sum of the singular values of R_a R_b^T.
    Raises: ValueError for fewer than two rows, which have no covariance.
    """
    if min(len(a_ND), len(b_ND)) < 2:
        raise ValueError(f"sets of {len(a_ND)} and {len(b_ND)}: a covariance needs two")
    roots = [_root_of_covariance(rows.astype(np.float64)) for rows in (a_ND, b_ND)]
    apart = float(np.square(a_ND.mean(axis=0, dtype=np.float64) - b_ND.mean(axis=0, dtype=np.float64)).sum())
    spread = sum(float(np.square(root).sum()) for root in roots)
    return apart + spread - 2 * float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())


def thumbnail(picture: np.ndarray, side: int = 8) -> np.ndarray:
    """A picture (H, W, C) as the means over `side` x `side` equal fields, float64 in [0, 1].

    A pixel on the border of two fields counts in each by its share.
    """
    return _field_means(_field_means(_unit(picture), side).swapaxes(0, 1), side).swapaxes(0, 1)


def motion(video: np.ndarray) -> float:
    """Mean absolute difference between neighbouring frames; 0 for a still or a single frame."""
    values = _unit(video)
    return float(np.abs(np.diff(values, axis=0)).mean()) if len(values) > 1 else 0.0


def flicker(video: np.ndarray) -> float:
    """Mean absolute second difference over time, the mean of |x[t-1] - 2 x[t] + x[t+1]| / 2; 0 below 3 frames.

    A steady change of brightness has none, a pixel that goes on and off every other frame has 1.
    """
    values = _unit(video)
    return float(np.abs(np.diff(values, n=2, axis=0)).mean() / 2) if len(values) > 2 else 0.0


def sharpness(video: np.ndarray) -> float:
    """Variance of the 4-neighbour Laplacian of brightness (the mean over colours), mean over frames.

    Raises: ValueError for pictures below 3 x 3 pixels.
    """
    grey = _unit(video).mean(axis=-1)
    if min(grey.shape[1:]) < 3:
        raise ValueError(f"pictures of {grey.shape[1:]} pixels are too small for a Laplacian")
    middle = grey[:, 1:-1, 1:-1]
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return float((around - 4 * middle).var(axis=(1, 2)).mean())


def _ssim_of_frame(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    mean_a, mean_b = _blurred(a_HWC), _blurred(b_HWC)
    variance_a, variance_b = _blurred(a_HWC**2) - mean_a**2, _blurred(b_HWC**2) - mean_b**2
    covariance = _blurred(a_HWC * b_HWC) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    alike = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((alike / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean())


def _blurred(picture_HWC: np.ndarray) -> np.ndarray:
    """Seen through the window of SSIM, wherever it fits: 10 pixels smaller each way."""
    window = SSIM_WINDOW / SSIM_WINDOW.sum()
    for axis in (0, 1):
        picture_HWC = np.lib.stride_tricks.sliding_window_view(picture_HWC, len(window), axis=axis) @ window
    return picture_HWC


def _root_of_covariance(rows_ND: np.ndarray) -> np.ndarray:
    """R (min(N, D), D) with R^T R the covariance."""
    return np.linalg.qr((rows_ND - rows_ND.mean(axis=0)) / (len(rows_ND) - 1) ** 0.5).R


def _field_means(values: np.ndarray, side: int) -> np.ndarray:
    """Means over `side` equal parts of the first axis: differences of its running sum, between whole pixels linear."""
    length = len(values)
    sums = np.concatenate([np.zeros_like(values[:1]), values.cumsum(axis=0)])
    at = np.arange(side + 1) * length / side
    below = np.minimum(at.astype(int), length - 1)
    part = (at - below).reshape(-1, *[1] * (values.ndim - 1))
    return np.diff(sums[below] + part * values[below], axis=0) * (side / length)


def _unit(video: np.ndarray) -> np.ndarray:
    return video.astype(np.float64) / (255 if video.dtype == np.uint8 else 1)
