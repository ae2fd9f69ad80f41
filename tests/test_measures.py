"""Measures of a video against closed forms."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from tests.closeness import assert_close
from vdit_cli.measures import flicker, motion, psnr, sharpness

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
