"""Two sets of videos, paired by prompt and seed, and what differs between them."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vdit_cli.errors import EvditError
from vdit_cli.evaluation.intervals import Estimate, differences, estimate
from vdit_cli.evaluation.readings import compare_frames
from vdit_cli.evaluation.score import FEW, Score, columns, score_videos
from vdit_cli.evaluation.videos import Video, bare_name, distinct, videos_at
from vdit_cli.evaluation.work import Work, workers_for, working
from vdit_cli.timing import Progress

NAMES_TOLD = 5
NO_PIXELS = "PSNR and SSIM are left out: they are of frames as made, so every video must be a folder of PNGs"
Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class Comparison:
    """The scores of both sides, and `pairs` of their clips; `closeness` has PSNR and SSIM where they could be had."""

    a: Score
    b: Score
    pairs: Pairs
    closeness: dict[str, Estimate]
    left_out: str | None

    @cached_property
    def differences(self) -> dict[str, Estimate]:
        """Means of a - b over the pairs that both have a number, with intervals."""
        a, b = ([side.clips[pair[k]] for pair in self.pairs] for k, side in enumerate((self.a, self.b)))
        return estimate(differences(columns(a), columns(b)), [clip.group for clip in a])

    @property
    def unpaired(self) -> dict[str, list[str]]:
        """Names of the clips without a partner."""
        sides = {"a": self.a.clips, "b": self.b.clips}
        return {
            name: [clips[at].name for at in _alone(len(clips), self.pairs, place)]
            for place, (name, clips) in enumerate(sides.items())
        }

    def content(self) -> dict[str, Any]:
        """The score of A as JSON values, and under `against` that of B, the differences and the closeness."""
        against = {
            **self.b.content(),
            "pairs": [[self.a.clips[a].name, self.b.clips[b].name] for a, b in self.pairs],
            "unpaired": self.unpaired,
            "differences": {name: each.content() for name, each in self.differences.items()},
            "closeness": {name: each.content() for name, each in self.closeness.items()},
            "closeness_left_out": self.left_out,
        }
        return {**self.a.content(), "against": against}


def compare(
    paths: Sequence[Path],
    against: Path,
    progress: Progress,
    *,
    kept: Path | None = None,
    workers: int | None = None,
    world: bool | None = None,
) -> Comparison:
    """Score the videos at `paths` and at `against`, as `score` does, and pair them; who has no partner is said.

    Raises: EvditError as `score` does, and where no video has a partner; Interrupted as `score` does.
    """
    a, b = (distinct(videos_at(places, progress), progress) for places in (paths, [against]))
    pairs = paired(a, b)
    if not pairs:
        what = (
            f"no video has a partner in {against}: partners have the same prompt and seed, or the same name and prompt"
        )
        raise EvditError(what, where=f"--against {against}")
    for place, side in enumerate((a, b)):
        alone = _alone(len(side), pairs, place)
        if alone:
            names = ", ".join(side[at].path.name for at in alone[:NAMES_TOLD]) + (", ..." if alone[NAMES_TOLD:] else "")
            progress.say(f"{len(alone)} of {len(side)} videos of {'AB'[place]} have no partner: {names}")
    silent = sum(a[at].prompt is None for at, _ in pairs)
    if silent:
        progress.say(f"{silent} of {len(pairs)} pairs are of equal names alone: no prompt of theirs is known")
    with working(kept, workers or workers_for(len(a) + len(b)), progress) as work:
        is_wanted = max(len(a), len(b)) > FEW if world is None else world
        left, right = (score_videos(side, work, is_wanted) for side in (a, b))
        is_pixels = all(video.path.is_dir() for video in (*a, *b))
        if not is_pixels:
            progress.say(NO_PIXELS)
        closeness = _closeness([(a[i], b[j]) for i, j in pairs], work) if is_pixels else {}
    return Comparison(left, right, pairs, closeness, None if is_pixels else NO_PIXELS)


def paired(a: Sequence[Video], b: Sequence[Video]) -> Pairs:
    """Places in `a` and `b` of equal prompt and seed; of equal prompt and name where one of the two tells no seed.

    Without a prompt the names must be equal too: a seed alone is that of any number of videos.
    Of several that are alike the first goes with the first. In the order of `a`.
    """
    by_seed, by_name = _places(b, _seed_of), _places(b, lambda video: bare_name(video.path))
    found: dict[int, int] = {}
    for at, video in enumerate(a):
        if video.seed is not None and (same := by_seed[video.prompt, _seed_of(video)]):
            found[at] = same.popleft()
    taken = set(found.values())
    for at, video in enumerate(a):
        if at in found:
            continue
        for other in by_name[video.prompt, bare_name(video.path)]:
            if other not in taken and (video.seed is None or b[other].seed is None):
                found[at] = other
                taken.add(other)
                break
    return sorted(found.items())


def _seed_of(video: Video) -> tuple[int | None, str | None]:
    """What a seed is one of: the prompt's videos, or without a prompt those of one name."""
    return video.seed, bare_name(video.path) if video.prompt is None else None


def _places(videos: Sequence[Video], name: Callable[[Video], Hashable]) -> dict[Hashable, deque[int]]:
    """Where in `videos` each prompt with each name stands; nowhere where none does."""
    found: dict[Hashable, deque[int]] = defaultdict(deque)
    for at, video in enumerate(videos):
        found[video.prompt, name(video)].append(at)
    return found


def _alone(count: int, pairs: Pairs, place: int) -> list[int]:
    """Which of `count` clips of the side at this place in each of `pairs` have no partner."""
    with_partner = {pair[place] for pair in pairs}
    return [at for at in range(count) if at not in with_partner]


def _closeness(pairs: Sequence[tuple[Video, Video]], work: Work) -> dict[str, Estimate]:
    """PSNR over the pairs that differ, SSIM over all, and the share of equal pairs."""
    keys = [f"pair {a.digest} {b.digest}" for a, b in pairs]
    calls = {key: tuple((each.path, each.digest) for each in pair) for key, pair in zip(keys, pairs, strict=True)}
    found = work.results("comparing frames", compare_frames, calls)
    each = [found[key] for key in keys]
    numbers: dict[str, list[float | None]] = {name: [one[name] for one in each] for name in ("psnr", "ssim")}
    numbers["equal"] = [float(one["psnr"] is None) for one in each]
    return estimate(numbers, [a.prompt if a.prompt is not None else a.path.name for a, _ in pairs])
