"""From pixels to objects: the background of a clip, the palette colours before it, and each object's soft outline.

Letters: T frames, h, w picture size (128 x 128 here), C colours. Pixels are uint8. Classical image analysis, no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from vdit_cli.data.shapes_prompts import COLOURS
from vdit_cli.data.shapes_scenes import BACKGROUND_RGB, CHECKER, COLOUR_RGB

FAR = 30
"""A pixel further than this (of 255, in any colour) from the background is foreground; the palette keeps 89 away."""
PALETTE_REACH = 64
"""A plain foreground pixel further than this from every palette entry has no colour."""
PLAIN = 40
"""A pixel is plain where it differs by less from its neighbours: inside an object, away from blurred borders."""
LEAST_BACKGROUND = 0.3
LEAST_EXPLAINED = 0.6
LEAST_AREA = 20.0
LEAST_PLAIN_PIXELS = 12.0
LEAST_SEEN = 0.4
LEAST_SEEN_MAIN = 0.75
"""Share of the frames in which an object must be there: any object, and the largest one, which nothing hides."""


@dataclass(frozen=True, eq=False)
class Outline:
    """One object: its colour, cover in [0, 1] (T, h, w), area (T), centre (T, 2; x, y), where seen and unobstructed."""

    colour: str
    alpha: np.ndarray
    area: np.ndarray
    centre: np.ndarray
    seen: np.ndarray
    clear: np.ndarray


class Unreadable(Exception):
    """A clip that shows no scene of the world; the text says what it fails on."""


def find_background(video_CThw: np.ndarray) -> tuple[str, np.ndarray]:
    """The background that the most pixels match, and its picture (C, h, w). Raises Unreadable when too few do."""
    sample = video_CThw[:, ::4]
    shares = {}
    for name in BACKGROUND_RGB:
        shares[name] = float((_far_from(sample, background_picture(name, video_CThw.shape[-1])) <= FAR).mean())
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < LEAST_BACKGROUND:
        raise Unreadable(f"no background: the best match, {best}, holds for {shares[best]:.0%} of the pixels")
    return best, background_picture(best, video_CThw.shape[-1])


@cache
def background_picture(name: str, size: int) -> np.ndarray:
    """A background as uint8 (C, size, size); the fields of a board are CHECKER pixels wide."""
    field = (np.arange(size) // int(CHECKER)) % 2
    odd = field[:, None] ^ field[None, :]
    picture = np.array(BACKGROUND_RGB[name])[odd].transpose(2, 0, 1)
    return np.rint(picture * 255).astype(np.uint8)


def find_outlines(video_CThw: np.ndarray, background_Chw: np.ndarray) -> list[Outline]:
    """The objects before a background, largest first.

    A tube of foreground, connected in space and time, is split by palette colour; what lasts is an object.
    Raises: Unreadable when the background comes and goes, the foreground has no colours of the palette, or nothing
    lasts.
    """
    front = _far_from(video_CThw, background_Chw) > FAR
    crowded = front.mean(axis=(1, 2)) > 1 - LEAST_BACKGROUND
    if crowded.mean() > 0.1:
        raise Unreadable(f"the background is missing in {crowded.sum()} of {len(crowded)} frames")
    if front.sum() < LEAST_AREA * LEAST_SEEN * len(front):
        raise Unreadable("nothing but background")
    tubes, count = ndimage.label(front, structure=np.ones((3, 3, 3)))
    colours_of = _tube_colours(video_CThw, front, tubes, count)
    return _split(video_CThw, background_Chw, tubes, colours_of)


def _far_from(video_CThw: np.ndarray, background_Chw: np.ndarray) -> np.ndarray:
    """How far each pixel is from the background, uint8 (T, h, w).

    The blurred border between two fields of a board is background too: within 2 pixels of it any mixture of both is.
    """
    low, high = (extreme(background_Chw[0], 5) for extreme in (ndimage.minimum_filter, ndimage.maximum_filter))
    if np.array_equal(low, high):
        return _gap(video_CThw, background_Chw[:, None])
    brightness = (video_CThw.sum(axis=0, dtype=np.uint16) // 3).astype(np.uint8)  # the fields of a board are grey
    mixture = np.clip(brightness, low, high)
    return _gap(video_CThw, np.broadcast_to(mixture, video_CThw.shape))


def _gap(a_C: np.ndarray, b_C: np.ndarray) -> np.ndarray:
    """The largest difference in any colour, uint8."""
    parts = [np.maximum(a, b) - np.minimum(a, b) for a, b in zip(a_C, b_C, strict=True)]
    return np.maximum(np.maximum(parts[0], parts[1]), parts[2])


def _palette() -> np.ndarray:
    return np.array([COLOUR_RGB[name] for name in COLOURS], np.float32) * 255


def _tube_colours(video_CThw: np.ndarray, front: np.ndarray, tubes: np.ndarray, count: int) -> np.ndarray:
    """Which colours each tube really shows, bool (count + 1, 8), judged by plain pixels of every third frame."""
    sample = np.ascontiguousarray(video_CThw[:, ::3])
    plain = front[::3].copy()
    step_x, step_y = _gap(sample[..., 1:], sample[..., :-1]), _gap(sample[..., 1:, :], sample[..., :-1, :])
    plain[..., 1:] &= step_x < PLAIN
    plain[..., :-1] &= step_x < PLAIN
    plain[:, 1:] &= step_y < PLAIN
    plain[:, :-1] &= step_y < PLAIN
    pixels = sample[:, plain].astype(np.float32)
    if pixels.shape[1] < LEAST_PLAIN_PIXELS * len(plain) * LEAST_SEEN:
        raise Unreadable("the foreground has no plain colour")
    distance = np.stack([np.abs(pixels - entry[:, None]).max(axis=0) for entry in _palette()])
    nearest = distance.argmin(axis=0)
    explained = distance.min(axis=0) <= PALETTE_REACH
    places = tubes[::3][plain]
    shown = np.bincount((places * len(COLOURS) + nearest)[explained], minlength=(count + 1) * len(COLOURS))
    has = shown.reshape(count + 1, len(COLOURS)) >= LEAST_PLAIN_PIXELS * LEAST_SEEN * len(plain)
    share = float((explained & has[places, nearest]).mean())
    if share < LEAST_EXPLAINED:
        raise Unreadable(f"only {share:.0%} of the foreground keeps to a colour of the palette in one place")
    return has


def _split(
    video_CThw: np.ndarray, background_Chw: np.ndarray, tubes: np.ndarray, colours_of: np.ndarray
) -> list[Outline]:
    """Cover of each pixel by the colour of its tube whose mixture with the background fits it best."""
    frames, size = tubes.shape[0], tubes.shape[-1]
    coloured = np.asarray(colours_of.any(axis=1))
    wide = _spread(np.where(coloured[tubes], tubes, 0))
    places = np.flatnonzero(wide)
    tube = wide.ravel()[places]
    under = background_Chw.reshape(3, -1)[:, places % (size * size)].astype(np.float32)
    offset = video_CThw.reshape(3, -1)[:, places].astype(np.float32) - under
    best_misfit = np.full(len(places), np.inf, np.float32)
    cover = np.zeros(len(places), np.float32)
    colour = np.zeros(len(places), np.int64)
    for index in np.flatnonzero(colours_of.any(axis=0)):
        line = _palette()[index][:, None] - under
        part = np.clip((offset * line).sum(axis=0) / np.square(line).sum(axis=0), 0, 1)
        misfit = np.square(offset - part * line).sum(axis=0)
        better = colours_of[tube, index] & (misfit < best_misfit)
        best_misfit[better], cover[better], colour[better] = misfit[better], part[better], index
    pieces = [(int(t), int(c)) for t, c in zip(*np.nonzero(colours_of), strict=True)]
    outlines = []
    for group in _lasting(pieces, tube, colour, cover, places // (size * size), frames):
        chosen = np.isin(tube, [t for t, _ in group]) & (colour == group[0][1])
        alpha = np.zeros(frames * size * size, np.float32)
        alpha[places[chosen]] = cover[chosen]
        outlines.append(_measure(COLOURS[group[0][1]], alpha.reshape(frames, size, size)))
    if not outlines:
        raise Unreadable("no object lasts")
    outlines.sort(key=lambda outline: -float(outline.area.sum()))
    if outlines[0].seen.mean() < LEAST_SEEN_MAIN:
        raise Unreadable(f"the {outlines[0].colour} part is there in {outlines[0].seen.sum()} of {frames} frames")
    return [_mark_clear(outline, [o for o in outlines if o is not outline]) for outline in outlines]


def _spread(labels: np.ndarray) -> np.ndarray:
    """Labels grown by one pixel in each direction of the picture, to take in the soft borders."""
    grown = labels.copy()
    for axis in (1, 2):
        ahead = [slice(None)] * 3
        behind = [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        before = grown.copy()
        for to, source in ((tuple(ahead), tuple(behind)), (tuple(behind), tuple(ahead))):
            np.maximum(grown[to], before[source], out=grown[to])
    return grown


def _lasting(
    pieces: list[tuple[int, int]],
    tube: np.ndarray,
    colour: np.ndarray,
    cover: np.ndarray,
    frame: np.ndarray,
    frames: int,
) -> list[list[tuple[int, int]]]:
    """Pieces (tube, colour) that are objects; pieces of one colour that are never there together are one object."""
    groups: list[tuple[list[tuple[int, int]], np.ndarray]] = []
    for piece in pieces:
        own = (tube == piece[0]) & (colour == piece[1])
        seen = np.bincount(frame[own], cover[own], minlength=frames) >= LEAST_AREA
        for members, times in groups:
            if members[0][1] == piece[1] and (times & seen).sum() <= 0.1 * seen.sum():
                members.append(piece)
                times |= seen
                break
        else:
            groups.append(([piece], seen))
    return [members for members, times in groups if times.mean() >= LEAST_SEEN]


def _measure(colour: str, alpha: np.ndarray) -> Outline:
    area = alpha.sum(axis=(1, 2))
    middle = np.arange(alpha.shape[-1]) + 0.5
    weight = np.maximum(area, 1e-6)
    centre = np.stack([alpha.sum(axis=1) @ middle / weight, alpha.sum(axis=2) @ middle / weight], axis=-1)
    seen = area >= LEAST_AREA
    return Outline(colour, alpha, area, centre, seen, seen)


def _mark_clear(outline: Outline, others: list[Outline]) -> Outline:
    """The outline with `clear` where no other object touches it, or where it is seen when it hardly ever is clear."""
    touched = np.zeros(len(outline.area), bool)
    for other in others:
        near = ndimage.binary_dilation(outline.alpha > 0.3, structure=np.ones((1, 3, 3)), iterations=2)
        touched |= (near & (other.alpha > 0.3)).any(axis=(1, 2))
    clear = outline.seen & ~touched
    enough = clear.sum() >= max(6, 0.3 * len(clear))
    return Outline(
        outline.colour, outline.alpha, outline.area, outline.centre, outline.seen, clear if enough else outline.seen
    )
