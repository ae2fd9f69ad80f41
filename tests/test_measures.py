"""Measures of a video against closed forms."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from scipy import linalg, signal

from tests.closeness import assert_close
from vdit_cli.measures import flicker, frechet, motion, psnr, sharpness, ssim, thumbnail

pytestmark = pytest.mark.numerical


def test_psnr_by_closed_form():
    """A constant error of .1 is 20 dB; equal is infinite; uint8 and floats agree."""
    black = np.zeros((2, 4, 4, 3))
    assert_close(psnr(black + 0.1, black), 20.0)
    assert psnr(black, black) == inf
    a, b = np.full((1, 4, 4, 3), 100, np.uint8), np.full((1, 4, 4, 3), 151, np.uint8)
    assert_close(psnr(a, b), -20 * np.log10(51 / 255))
    assert_close(psnr(a / 255, b), psnr(b, a))
    with pytest.raises(ValueError, match="shapes"):
        psnr(black, black[:1])


def test_motion_is_the_mean_step():
    """A ramp of .02 a frame moves .02; a still or a single frame does not move; uint8 does not wrap."""
    ramp = np.linspace(0, 0.2, 11)[:, None, None, None] * np.ones((1, 3, 3, 3))
    assert_close(motion(ramp), 0.02)
    assert motion(ramp[:1]) == motion(np.repeat(ramp[:1], 5, axis=0)) == 0
    assert_close(motion(np.array([200, 0], np.uint8).reshape(2, 1, 1, 1)), 200 / 255)


def test_flicker_sees_what_comes_and_goes():
    """A steady ramp has none; on and off every other frame has 1; two frames have none."""
    ramp = np.linspace(0, 1, 9)[:, None, None, None] * np.ones((1, 3, 3, 3))
    blink = (np.arange(8) % 2)[:, None, None, None] * np.ones((1, 3, 3, 3))
    assert_close(flicker(ramp), 0, planted=flicker(blink))
    assert_close(flicker(blink), 1)
    assert flicker(blink[:2]) == 0


def test_sharpness_by_closed_form():
    """A chess board of single pixels has a Laplacian of +-4: variance 16; a plain or a ramp has none."""
    board = ((np.arange(6)[:, None] + np.arange(6)) % 2).astype(float)[None, :, :, None].repeat(3, axis=3)
    assert_close(sharpness(board), 16)
    assert_close(sharpness(np.full((2, 5, 5, 3), 0.4)), 0, planted=16)
    assert_close(sharpness(np.broadcast_to(np.arange(6)[:, None, None] / 6, (1, 6, 6, 3))), 0, planted=16)
    noise = np.random.default_rng(0).random((2, 16, 16, 3))
    assert sharpness((noise[:, 1:] + noise[:, :-1]) / 2) < sharpness(noise)
    with pytest.raises(ValueError, match="small"):
        sharpness(board[:, :2])


def test_ssim_by_its_definition():
    """Plain pictures by closed form; noise by scipy with the whole 11 x 11 window; 1 for equal; uint8 as floats."""
    plain = np.full((2, 12, 14, 3), 0.3)
    assert_close(ssim(plain, plain + 0.2), (2 * 0.3 * 0.5 + 1e-4) / (0.3**2 + 0.5**2 + 1e-4))
    random = np.random.default_rng(0)
    a = random.integers(0, 256, (2, 20, 16, 3), dtype=np.uint8)
    b = np.clip(a + random.normal(0, 30, a.shape), 0, 255).astype(np.uint8)
    assert_close(ssim(a, a), 1.0)
    line = signal.windows.gaussian(11, 1.5)
    window = np.outer(line, line) / np.outer(line, line).sum()

    def seen(picture: np.ndarray) -> np.ndarray:
        return signal.correlate2d(picture, window, mode="valid")

    found = []
    for x, y in zip(*(np.moveaxis(video / 255, 3, 1).reshape(-1, 20, 16) for video in (a, b)), strict=True):
        x_mean, y_mean = seen(x), seen(y)
        x_var, y_var, both = (
            seen(p) - q for p, q in ((x * x, x_mean**2), (y * y, y_mean**2), (x * y, x_mean * y_mean))
        )
        above = (2 * x_mean * y_mean + 1e-4) * (2 * both + 9e-4)
        found.append(above / ((x_mean**2 + y_mean**2 + 1e-4) * (x_var + y_var + 9e-4)))
    assert_close(ssim(a, b), float(np.mean(found)))
    for other in (a[:1], a[:, :10]):
        with pytest.raises(ValueError, match="shapes"):
            ssim(other, b if len(other) == 1 else other)


def test_frechet_by_closed_form():
    """Axes of other lengths, moved: |m|^2 plus the squared differences of the deviations, with many rows and few."""
    a, b = np.array([1.0, 2, 3, 0.5]), np.array([2.0, 2, 1, 4])
    move = np.array([0.3, -1, 0, 2])
    rows = [np.concatenate([np.diag(axes), -np.diag(axes)]) for axes in (a, b)]
    deviations = [axes * (2 / 7) ** 0.5 for axes in (a, b)]
    expected = float(np.square(move).sum() + np.square(deviations[0] - deviations[1]).sum())
    assert_close(frechet(rows[0], rows[1] + move), expected)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((30, 4)))[0].T  # 4 axes somewhere in 30 dimensions
    assert_close(frechet(rows[0] @ turn, (rows[1] + move) @ turn), expected)
    assert_close(frechet(rows[0], rows[0]), 0.0, planted=expected)
    with pytest.raises(ValueError, match="two"):
        frechet(rows[0], rows[1][:1])


def test_frechet_by_scipy():
    """The root of a product of covariances that do not commute; of few rows, by the eigenvalues of their kernel."""
    random = np.random.default_rng(2)
    a = random.standard_normal((200, 6)) @ random.standard_normal((6, 6))
    b = random.standard_normal((90, 6)) @ random.standard_normal((6, 6)) + 0.5
    roots = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    apart = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    assert_close(frechet(a, b), float(apart + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * roots)))
    a, b = random.standard_normal((5, 64)), 2 * random.standard_normal((9, 64))
    kernel = (a - a.mean(axis=0)) @ (b - b.mean(axis=0)).T
    root = np.sqrt(np.linalg.eigvalsh(kernel @ kernel.T).clip(0)).sum() / (4 * 8) ** 0.5
    apart = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    assert_close(frechet(a, b), float(apart + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * root), rtol=1e-7)


@pytest.mark.parametrize("size", [(16, 24), (12, 20), (5, 8)])
def test_a_thumbnail_is_the_mean_over_equal_fields(size: tuple[int, int]):
    """Also where a border runs through a pixel: each pixel as 8 x 8 smaller ones divides evenly."""
    picture = np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)
    fine = (picture / 255).repeat(8, axis=0).repeat(8, axis=1)
    expected = fine.reshape(8, size[0], 8, size[1], 3).mean(axis=(1, 3))
    assert_close(thumbnail(picture), expected)
