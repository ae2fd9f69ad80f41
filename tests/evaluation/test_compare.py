"""Videos of runs side by side: what is paired, measured, sorted, chosen and written, on planted differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.planted import compare, plain_video, plant
from vdit_cli.artifacts.video_file import read_video
from vdit_cli.errors import USAGE, EvditError
from vdit_cli.evaluation.compare import Compared, Pair, chosen, classed, labels_of
from vdit_cli.evaluation.videos import Video
from vdit_cli.timing import Silent


def pair_of(name: str, difference: float, motion: float = 0.0, is_large: bool = False) -> Pair:
    """A pair as if it had been measured."""
    video = Video(Path(name), name, name, 0)
    return Pair((video, video), 1, motion, (difference,), is_large)


def prompts(pairs: tuple[Pair, ...] | list[Pair]) -> list[str | None]:
    """The pairs by their prompts."""
    return [pair.videos[0].prompt for pair in pairs]


def test_differences_and_motion_are_those_planted():
    """Against the first run, over all pixels and frames; motion is that of the first run alone."""
    plant("a", "0", plain_video([0, 255, 0]), "one")
    half = plain_video([51, 255, 0])
    half[0, :, 6:] = 0
    plant("b", "0", half, "one")
    plant("c", "0", plain_video([255, 0, 255]), "one")
    (pair,) = compare("a", "b", "c").pairs
    assert pair.differences == (51 / 2 / 3 / 255, 1.0) and pair.difference == 1.0
    assert (pair.motion, pair.frames) == (1.0, 3)


def test_a_dark_pixel_below_a_light_one_counts_as_much():
    """Levels are bytes: 5 - 250 is no 11."""
    plant("a", "0", plain_video([250]), "one")
    plant("b", "0", plain_video([5]), "one")
    (pair,) = compare("a", "b").pairs
    assert pair.difference == 245 / 255 and pair.motion == 0.0


def test_pairs_are_sorted_by_where_one_run_differs_most():
    """Not by names, nor by the sum over runs."""
    for name, (b, c) in {"some": (40, 40), "most": (0, 60), "none": (0, 0), "least": (5, 1)}.items():
        plant("a", name, plain_video([100, 100]), name)
        plant("b", name, plain_video([100 + b] * 2), name)
        plant("c", name, plain_video([100 - c] * 2), name)
    found = compare("a", "b", "c")
    assert prompts(found.shown) == ["most", "some", "least", "none"]
    assert found.shown[0].differences == (0.0, 60 / 255)


def test_partners_have_the_same_prompt_and_seed():
    """Whatever their files are called; two seeds of a prompt are two pairs."""
    for seed in (0, 1):
        plant("a", f"{seed}", plain_video([seed]), "one", seed)
        plant("b", f"{1 - seed}", plain_video([seed]), "one", seed)
    found = compare("a", "b")
    assert [pair.difference for pair in found.pairs] == [0.0, 0.0]
    assert sorted((pair.videos[0].seed, pair.videos[1].path.name) for pair in found.pairs) == [(0, "1"), (1, "0")]


def test_who_is_missing_is_counted_and_named():
    """In which run; only what all runs have is shown."""
    for run, names in {"a": "wxyz", "b": "wxy", "c": "wxz", "d": "wxyzv"}.items():
        for name in names:
            plant(run, name, plain_video([1]), name)
    progress = Silent()
    found = compare("a", "b", "c", "d", progress=progress)
    assert sorted(map(str, prompts(found.pairs))) == ["w", "x"]
    assert found.missing == {
        "b": {"lacks": ["z"], "alone": []},
        "c": {"lacks": ["y"], "alone": []},
        "d": {"lacks": [], "alone": ["v"]},
    }
    assert progress.lines == [
        "1 of 4 videos of a have no partner in b: z",
        "1 of 4 videos of a have no partner in c: y",
        "1 of 5 videos of d have no partner in a: v",
    ]


def test_doubles_count_once():
    """Equal bytes, prompt and seed are one video; another one of that prompt and seed has no partner."""
    for name in ("0", "1"):
        plant("a", name, plain_video([7]), "one")
    plant("b", "0", plain_video([7]), "one")
    plant("b", "1", plain_video([8]), "one")
    progress = Silent()
    found = compare("a", "b", progress=progress)
    assert len(found.pairs) == 1 and found.missing["b"]["alone"] == ["1"]
    assert "it counts once" in progress.lines[0]


def test_without_prompts_names_are_paired_and_shown():
    """Which is said."""
    plant("a", "clip", plain_video([1]))
    plant("b", "clip", plain_video([2]))
    progress = Silent()
    (pair,) = compare("a", "b", progress=progress).pairs
    assert pair.caption().prompt == "clip" and pair.caption().told == "no seed is known, differs by 0.0039"
    assert progress.lines == ["1 of 1 pairs are of equal names alone: no prompt of theirs is known"]


def test_nothing_paired_is_an_error():
    """The one line; which videos they are says nothing more. And nothing is written."""
    plant("a", "0", plain_video([1]), "one")
    plant("b", "0", plain_video([1]), "two")
    progress = Silent()
    with pytest.raises(EvditError, match="no video of a has a partner in b: partners have the same prompt and seed"):
        compare("a", "b", progress=progress)
    assert not Path("out").exists() and progress.lines == []


@pytest.mark.parametrize(
    ("other", "fps", "told"),
    [
        (plain_video([1, 1, 1], height=6), 8, "12 x 6 pixels at 8 frames a second"),
        (plain_video([1, 1, 1]), 10, "12 x 8 pixels at 10 frames a second"),
        (plain_video([1, 1]), 8, "2 frames, .* has more"),
        (plain_video([1] * 5), 8, "3 frames, .* has more"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_videos_of_other_sizes_rates_and_lengths_are_refused(other: np.ndarray, fps: int, told: str, alone: bool):
    """With both names and what to do, and nothing is written; also another pair's, but for its length."""
    plant("a", "0", plain_video([1, 1, 1]), "one")
    plant("b", "0", other if alone else plain_video([2, 2, 2]), "one", fps=fps if alone else 8)
    for run in ("a", "b"):
        plant(run, "1", plain_video([1, 1, 1]) if alone else other, "two", fps=8 if alone else fps)
    if not alone and fps == 8 and other.shape[1:] == (8, 12, 3):
        assert {pair.frames for pair in compare("a", "b").pairs} == {3, len(other)}
        return
    with pytest.raises(EvditError, match=told) as caught:
        compare("a", "b")
    place = str(Path("b" if alone else "a", "0" if alone else "1"))
    error = caught.value
    assert error.exit_code == USAGE and place in error.what and str(Path("a", "0")) in error.what
    assert error.next_steps and "out of its folder" in error.next_steps[-1]
    assert not Path("out").exists()


def test_labels_are_the_shortest_ends_of_paths_that_differ():
    """A folder's name, more where two have the same; those given win."""
    assert labels_of([Path("runs/base"), Path("student")], ()) == ("base", "student")
    paths = [Path("runs/x/videos"), Path("runs/y/videos"), Path("other/y/videos")]
    assert labels_of(paths, ()) == ("runs/x/videos", "runs/y/videos", "other/y/videos")
    assert labels_of(paths[:2], ()) == ("x/videos", "y/videos")
    assert labels_of(paths[:2], ("dense", "1:7")) == ("dense", "1:7")
    assert labels_of([Path(), Path("a")], ()) == (Path().absolute().name, "a")


@pytest.mark.parametrize(
    ("runs", "labels", "told"),
    [
        (["a"], [], "there is one run: two at least are compared"),
        (["a", "b", "./a"], [], "a is given 2 times"),
        (["a", "b"], ["x"], "1 labels don't fit 2 runs"),
        (["a", "b"], ["x", "x"], "'x' is no label of one run"),
        (["a", "b"], ["x", " "], "' ' is no label of one run"),
    ],
)
def test_runs_and_labels_that_can_not_be_are_refused(runs: list[str], labels: list[str], told: str):
    """Before any run is looked at: none of these is there."""
    with pytest.raises(EvditError, match=told) as caught:
        compare(*runs, labels=labels)
    assert caught.value.exit_code == USAGE and caught.value.next_steps


def test_large_motion_is_the_quarter_that_moves_most():
    """Of the first run's videos, whichever differ; stills are never in it, nor is any of fewer than four pairs."""
    pairs = [pair_of(str(at), 1 - at / 10, motion=moves) for at, moves in enumerate([0.1, 0.5, 0.2, 0.6, 0, 0, 0, 0])]
    found = classed(pairs)
    assert [pair.videos[0].prompt for pair in found if pair.is_large] == ["1", "3"]
    assert Compared(("a", "b"), tuple(found), (), {}).large_from == 0.5
    assert not any(pair.is_large for pair in classed(pairs[:3]))
    assert not any(pair.is_large for pair in classed([replace(pair, motion=0.0) for pair in pairs]))
    assert Compared(("a", "b"), tuple(classed(pairs[:3])), (), {}).large_from is None


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=20), st.integers(1, 12))
def test_half_of_the_limit_goes_to_large_motion(drawn: list[tuple[int, bool]], limit: int):
    """As far as there are any; the rest to the others, and of each those that differ most."""
    pairs = [pair_of(str(at), -at, is_large=large) for at, (_, large) in enumerate(drawn)]
    shown = chosen(pairs, limit)
    if limit == 1:
        assert shown == pairs[:1]
        return
    large, others = ([pair for pair in pairs if pair.is_large is wanted] for wanted in (True, False))
    assert len(shown) == min(limit, len(pairs)) == len(set(prompts(shown)))
    taken = sum(pair.is_large for pair in shown)
    assert shown == others[: len(shown) - taken] + large[:taken]
    assert taken >= min(limit // 2, len(large)) and len(shown) - taken >= min(limit - limit // 2, len(others))


def test_the_limit_and_the_class_of_motion_hold_for_what_is_written():
    """Eight pairs, of which two move, and differ least; four are shown, both of them among these."""
    for at in range(8):
        first = plain_video([100, 110 + at] if at > 5 else [100, 100])
        plant("a", str(at), first, str(at))
        plant("b", str(at), first + np.uint8(50 - at), str(at))
    found = compare("a", "b", limit=4)
    assert prompts(found.shown) == ["0", "1", "6", "7"]
    assert [pair.is_large for pair in found.shown] == [False, False, True, True]
    assert len(found.pairs) == 8 and len(read_video("out")[0]) == 4 * 2
    content = found.content()
    assert (content["pairs"], content["shown"], content["left_out"]) == (8, 4, 4)
    assert content["large_motion"] == {"pairs": 2, "from": found.shown[2].motion}
    assert [video["prompt"] for video in content["videos"]] == ["0", "1", "6", "7", "2", "3", "4", "5"]
    assert [video["shown"] for video in content["videos"]] == [True] * 4 + [False] * 4
