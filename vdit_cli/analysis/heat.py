"""Tile masses as pictures inside a page: SVG with a value in each cell, and tiny PNG files for the heads."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from html import escape

from vdit_cli.analysis.ramp import LEVELS, colours, hex_of, level_of
from vdit_cli.analysis.words import share, times

Rows = Sequence[Sequence[float]]


def styles() -> str:
    """The page's rules for the ramp's colours, .c0 to .c63, as fill and as background."""
    fills = [f".c{level}{{fill:{hex_of(level)}}}" for level in range(LEVELS)]
    grounds = [f".g{level}{{background:{hex_of(level)}}}" for level in range(LEVELS)]
    return "".join([*fills, *grounds])


def gradient() -> str:
    """The ramp as a CSS gradient, dark to bright."""
    return "linear-gradient(90deg," + ",".join(hex_of(level) for level in range(0, LEVELS, 3)) + ")"


def cells(masses: Rows, top: float) -> str:
    """One unit square a tile (query frame down, key frame across), each with a <title>. `masses` are F x F."""
    frames = len(masses)
    drawn = []
    for i, row in enumerate(masses):
        for j, mass in enumerate(row):
            said = f"frame {i} to {j}: {share(mass)}, {times(mass * frames)} × chance"
            drawn.append(f"<path class=c{level_of(mass, top)} d=M{j},{i}h1v1h-1z><title>{said}</title></path>")
    return "".join(drawn)


def small_map(masses: Rows, top: float, name: str) -> str:
    """A layer's map without axes."""
    frames = len(masses)
    return (
        f'<svg class="map explore" viewBox="0 0 {frames} {frames}" shape-rendering="crispEdges" role="img" '
        f'tabindex="0" data-step="{frames}" aria-label="{escape(name)}">{cells(masses, top)}</svg>'
    )


def large_map(masses: Rows, top: float, name: str, ticks: Sequence[int]) -> str:
    """A map with its axes: query frames down, key frames across."""
    frames, size, left, above = len(masses), 260, 40, 34
    scale = size / frames
    marks = []
    for tick in ticks:
        place = (tick + 0.5) * scale
        marks.append(f'<text class="tick" x="{left + place:g}" y="{above - 8}">{tick}</text>')
        marks.append(f'<text class="tick y" x="{left - 8}" y="{above + place + 4:g}">{tick}</text>')
    axes = (
        f'<text class="axis" x="{left + size / 2:g}" y="11">key frame</text>'
        f'<text class="axis" transform="translate(11 {above + size / 2:g}) rotate(-90)">query frame</text>'
    )
    return (
        f'<svg class="large explore" viewBox="0 0 {left + size + 2} {above + size + 2}" role="img" tabindex="0" '
        f'data-step="{frames}" aria-label="{escape(name)}">{axes}{"".join(marks)}'
        f'<g transform="translate({left} {above}) scale({scale:g})" shape-rendering="crispEdges">'
        f"{cells(masses, top)}</g></svg>"
    )


def png(masses: Rows, top: float) -> bytes:
    """A PNG file of one pixel a tile, in the ramp's colours. Source: the PNG specification, third edition."""
    levels = [[level_of(mass, top) for mass in row] for row in masses]
    used = sorted({level for row in levels for level in row})
    place = {level: index for index, level in enumerate(used)}
    lines = b"".join(b"\0" + bytes(place[level] for level in row) for row in levels)
    palette = b"".join(bytes(colours()[level]) for level in used)
    head = struct.pack(">IIBBBBB", len(masses[0]), len(masses), 8, 3, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"PLTE", palette), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def image(masses: Rows, top: float, name: str) -> str:
    """A head's map as an <img> that holds its own file."""
    held = base64.b64encode(png(masses, top)).decode("ascii")
    return f'<img class="map" alt="{escape(name)}" src="data:image/png;base64,{held}">'
