"""The scorer against rendered truth: through our own encoder, a blurred and noisy decoder, with two objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.closeness import assert_within
from tests.evaluation.clips import pixels, pixels_of
from vdit_cli.artifacts.video_file import read_video, write_video
from vdit_cli.data.shapes_prompts import ATTRIBUTES
from vdit_cli.data.shapes_world import caption, draw_scenes
from vdit_cli.evaluation.score import score_tensors
from vdit_cli.evaluation.shape_reading import read_attributes

CLIPS_A_FILE, FRAMES = 50, 29


@pytest.mark.parametrize("clips", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_clips_written_by_our_encoder_are_read_right(tmp_path: Path, clips: int):
    """At least 99 % of random clips for each attribute, and the number of objects, after mp4.

    50 clips go into one file, one after another: starting encoder and decoder for each would be most of the time.
    """
    scenes = draw_scenes(2026, clips, two_objects=0.0)
    videos = []
    for start in range(0, clips, CLIPS_A_FILE):
        path = tmp_path / f"{start}.mp4"
        write_video(path, np.concatenate([pixels(scene) for scene in scenes[start : start + CLIPS_A_FILE]]), 8)
        videos += list(read_video(path)[0].reshape(CLIPS_A_FILE, FRAMES, 128, 128, 3))
        path.unlink()
    found = score_tensors(videos, [caption(scene) for scene in scenes])
    assert {of for _, of in found.counts.values()} == {clips}
    assert all(found.accuracy[attribute] >= 0.99 for attribute in (*ATTRIBUTES, "objects")), found.counts
    assert found.accuracy["all five"] >= 0.99
    assert found.unreadable == 0
    assert found.measures["overlap"] > 0.94 and found.measures["residual"] < 0.2


def test_a_clip_in_a_file_of_its_own(tmp_path: Path):
    """A few single files, as `evdit generate` writes them."""
    scenes, videos = pixels_of(11, 6)
    for number, video in enumerate(videos):
        write_video(tmp_path / f"{number}.mp4", video, 8)
        videos[number], _ = read_video(tmp_path / f"{number}.mp4")
    assert score_tensors(videos, [caption(scene) for scene in scenes]).accuracy["all five"] == 1


@pytest.mark.numerical
def test_pixels_as_rendered_fit_their_templates():
    """Without a codec the overlap is .998, it does not jitter, and the track has hardly a residual."""
    scenes, videos = pixels_of(12, 40)
    found = score_tensors(videos, [caption(scene) for scene in scenes])
    assert found.accuracy["all five"] == found.accuracy["objects"] == 1
    assert found.measures["overlap"] > 0.997
    for video in videos:
        video[::2] = np.maximum(video[::2], np.roll(video[::2], 2, axis=2))
    doubled = score_tensors(videos[:6], [caption(scene) for scene in scenes[:6]])
    assert_within(found.measures["jitter"], 1e-3, planted=doubled.measures["jitter"], told="every other frame smeared")
    assert found.measures["residual"] < 0.15


@pytest.mark.parametrize("sigma", [0.8, 1.5])
def test_a_lossy_decoder_is_borne(sigma: float):
    """Blur of `sigma` pixels and noise of 6/255: all attributes still right, the overlap lower and in order."""
    generator = np.random.default_rng(0)
    scenes, videos = pixels_of(13, 40)
    for number, video in enumerate(videos):
        soft = ndimage.gaussian_filter(video.astype(np.float32), (0, sigma, sigma, 0))
        videos[number] = np.clip(soft + generator.normal(0, 6, video.shape), 0, 255).astype(np.uint8)
    found = score_tensors(videos, [caption(scene) for scene in scenes])
    assert found.accuracy["all five"] >= 0.97 and found.accuracy["objects"] >= 0.97, found.counts
    assert 0.8 < found.measures["overlap"] < 0.95


def test_two_objects_are_both_read():
    """The first, which nothing hides, always; the second in more than 9 of 10."""
    scenes, videos = pixels_of(14, 40, two_objects=1.0)
    found = score_tensors(videos, [caption(scene) for scene in scenes])
    assert found.accuracy["all five"] >= 0.98 and found.accuracy["objects"] >= 0.98, found.counts
    assert found.accuracy["second object"] >= 0.9, found.counts


@pytest.mark.parametrize("clips", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_other_sizes_and_lengths_are_read(clips: int):
    """Twice and half the size, and the first 21 frames of linear and still motions."""
    scenes = draw_scenes(15, clips, two_objects=0.0)
    assert any(scene.objects[0].motion.startswith(("moving", "standing")) for scene in scenes)
    for scene in scenes:
        words = scene.objects[0]
        for size in (64, 256):
            shown = read_attributes(pixels(scene, size)).objects[0]
            assert (shown.colour, shown.motion) == (words.colour, words.motion)
            assert size == 64 or (shown.size, shown.shape) == (words.size, words.shape)
        if words.motion.startswith(("moving", "standing")):
            assert read_attributes(pixels(scene, frames=21)).objects[0].motion == words.motion
