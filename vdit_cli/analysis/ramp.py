"""The colours of attention mass: one ramp from indigo over teal to yellow, even in lightness, for every picture.

Drawn in OKLCH (Björn Ottosson, "A perceptual color space for image processing", 2020): lightness rises linearly, so
that equal steps look equal, in grey too and to eyes that miss red or green. A colour is told by its
level, 0 to LEVELS - 1.
"""

from __future__ import annotations

import math
from functools import cache

from vdit_cli.analysis.results import Analysis

LEVELS = 64
LIGHTNESS = (0.2, 0.93)
STOPS = ((0.0, 0.095, 285.0), (0.3, 0.13, 258.0), (0.55, 0.105, 200.0), (0.8, 0.16, 140.0), (1.0, 0.165, 105.0))
"""(place on the ramp, chroma, hue in degrees); between stops both go linearly."""


@cache
def colours() -> tuple[tuple[int, int, int], ...]:
    """The ramp as LEVELS colours of red, green and blue, 0 to 255 each."""
    return tuple(_colour(level / (LEVELS - 1)) for level in range(LEVELS))


def hex_of(level: int) -> str:
    """A level's colour as a page writes it: "#1b2c5e"."""
    return "#" + "".join(f"{part:02x}" for part in colours()[level])


def is_light(level: int) -> bool:
    """Whether dark letters read better than light ones on this colour."""
    return _luminance(colours()[level]) > 0.18  # where contrast to black and to white is the same


def scale_top(analysis: Analysis) -> float:
    """The mass that the brightest colour stands for: 4 x chance, or the heaviest tile of a layer if that is more."""
    heaviest = max(max(row) for layer in analysis.layers for row in layer.tile_mass)
    return max(4 / analysis.grid.frames, heaviest)


def level_of(value: float, top: float) -> int:
    """The level of a mass from 0 to `top`, by its square root so that small masses stay apart; more than top is top."""
    return level_of_share(math.sqrt(max(0.0, value) / top))


def level_of_share(share: float) -> int:
    """The level at a share of the ramp, 0 to 1."""
    return min(LEVELS - 1, max(0, round(share * (LEVELS - 1))))


def _colour(place: float) -> tuple[int, int, int]:
    """The colour at a place of the ramp, less chroma where the screen can't show it."""
    lightness = LIGHTNESS[0] + place * (LIGHTNESS[1] - LIGHTNESS[0])
    after = next(index for index, stop in enumerate(STOPS) if stop[0] >= place)
    left, right = STOPS[max(0, after - 1)], STOPS[after]
    part = (place - left[0]) / (right[0] - left[0]) if right[0] > left[0] else 0.0
    chroma, hue = (left[i] + part * (right[i] - left[i]) for i in (1, 2))
    while True:
        linear = _linear_rgb(lightness, chroma, math.radians(hue))
        if chroma <= 0 or all(-1e-4 <= each <= 1 + 1e-4 for each in linear):
            return tuple(round(255 * _gamma(min(1.0, max(0.0, each)))) for each in linear)  # type: ignore[return-value]
        chroma -= 0.002


def _linear_rgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH to linear sRGB, with the matrices of its author."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )


def _gamma(value: float) -> float:
    """Linear light to sRGB."""
    return 12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055


def _luminance(colour: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour, 0 to 1. Source: WCAG 2.2."""
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
