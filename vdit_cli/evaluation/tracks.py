"""From a track to a motion: the class of motion that explains where an object's centre and radius are over time.

Each class is fitted by least squares over the frames given; the residual is the root mean square distance in pixels of
a 128 x 128 picture. Limits on the fitted amplitude keep a class from explaining noise. T frames, n of them used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_FRAMES = 6
LARGEST_RESIDUAL = 4.0
GROWTH_RATIO = 1.4
"""Radius at the end to radius at the start above which an object grows; the world's own is 2.08."""
WAY = (20.0, 90.0)
HOP = (14.0, 50.0)
SWING = (9.0, 27.0)
HOP_PERIODS = np.arange(15.0, 23.5, 0.5)
HOP_PHASES = np.arange(40) / 40
SWING_PERIODS = np.arange(22.0, 31.0, 1.0)


@dataclass(frozen=True)
class TrackReading:
    """The motion that fits best, or None with the reason, its residual, and the radius in the middle of the clip."""

    motion: str | None
    residual: float | None
    radius: float
    reason: str | None = None


def read_track(times: np.ndarray, centre: np.ndarray, radius: np.ndarray, frames: int) -> TrackReading:
    """The motion of an object seen at frame numbers `times` (n) with `centre` (n, 2) and `radius` (n).

    A change of radius is judged over all the `frames` of the clip, the line through `radius` prolonged.
    """
    middle = float(radius.mean())
    if len(times) < LEAST_FRAMES:
        return TrackReading(None, None, middle, f"{len(times)} frames are too few for a motion")
    line, rise = _line(times, radius)
    start, end = line[0] - rise * times[0], line[-1] + rise * (frames - 1 - times[-1])
    ratio = max(end, 0.1) / max(start, 0.1)
    if not 1 / GROWTH_RATIO < ratio < GROWTH_RATIO:
        name = "growing" if ratio > 1 else "shrinking"
        fits = {name: float(np.hypot(_spread(centre), np.sqrt(np.mean((radius - line) ** 2))))}
        middle = float((start + end) / 2)
    else:
        fits = {
            "standing still": _spread(centre),
            **_linear(times, centre),
            "bouncing": _bouncing(times, centre),
            "circling": _circling(times, centre),
        }
        fits = {name: float(np.hypot(off, _spread(radius))) for name, off in fits.items()}
    best = min(fits, key=lambda name: fits[name])
    if fits[best] > LARGEST_RESIDUAL:
        return TrackReading(None, fits[best], middle, f"no motion fits the track: {best} misses by {fits[best]:.1f} px")
    return TrackReading(best, fits[best], middle)


def _spread(values: np.ndarray) -> float:
    """Root mean square distance from the mean."""
    return float(np.sqrt(np.square(values - values.mean(axis=0)).sum() / len(values)))


def _line(times: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """The straight line through values over time, and its rise a frame."""
    slope, start = np.polyfit(times, values, 1)
    return start + slope * times, float(slope)


def _linear(times: np.ndarray, centre: np.ndarray) -> dict[str, float]:
    fits = {}
    for axis, (back, ahead) in enumerate((("moving left", "moving right"), ("moving up", "moving down"))):
        line, rise = _line(times, centre[:, axis])
        way = rise * (times[-1] - times[0])
        if WAY[0] <= abs(way) <= WAY[1]:
            off = np.hypot(_spread(centre[:, axis] - line), _spread(centre[:, 1 - axis]))
            fits[ahead if way > 0 else back] = float(off)
    return fits


def _bouncing(times: np.ndarray, centre: np.ndarray) -> float:
    """Residual of the best parabolic hop over period, phase and height; infinite when none has a height in HOP."""
    part = (times[None, None] / HOP_PERIODS[:, None, None] + HOP_PHASES[None, :, None]) % 1.0
    hop = (-4 * part * (1 - part)).reshape(-1, len(times))
    height, left = _scale(hop - hop.mean(axis=1, keepdims=True), centre[:, 1] - centre[:, 1].mean())
    left = np.where((height >= HOP[0]) & (height <= HOP[1]), left, np.inf)
    return float(np.hypot(np.sqrt(left.min()), _spread(centre[:, 0])))


def _circling(times: np.ndarray, centre: np.ndarray) -> float:
    """Residual of the best turn over period, sense, phase and radius; infinite when none has a radius in SWING."""
    place = centre[:, 0] + 1j * centre[:, 1]
    speed = 2 * np.pi / np.concatenate([SWING_PERIODS, -SWING_PERIODS])
    turn = np.exp(1j * speed[:, None] * times[None])
    swing, left = _scale(turn - turn.mean(axis=1, keepdims=True), place - place.mean())
    left = np.where((np.abs(swing) >= SWING[0]) & (np.abs(swing) <= SWING[1]), left, np.inf)
    return float(np.sqrt(left.min()))


def _scale(basis: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `basis` its least-squares factor on `values`, and the mean square that is left."""
    energy = np.maximum((np.abs(basis) ** 2).sum(axis=1), 1e-9)
    product = (basis.conj() * values).sum(axis=1)
    left = (np.abs(values) ** 2).sum() - np.abs(product) ** 2 / energy
    return product / energy, np.maximum(left, 0) / len(values)
