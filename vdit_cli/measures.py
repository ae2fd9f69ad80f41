"""Numbers of a video: closeness to another one, motion, flicker, sharpness. Pure functions, numpy only.

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


def _unit(video: np.ndarray) -> np.ndarray:
    return video.astype(np.float64) / (255 if video.dtype == np.uint8 else 1)
