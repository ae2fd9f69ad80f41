"""Two sets of videos, paired by prompt and seed, and what differs between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vdit_cli.errors import EvditError
from vdit_cli.evaluation.intervals import Estimate, differences, estimate
from vdit_cli.evaluation.readings import compare_frames
from vdit_cli.evaluation.score import FEW, Score, columns, score_videos
from vdit_cli.evaluation.videos import Video, bare_name, videos_at
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
        return {
            name: [clip.name for at, clip in enumerate(side.clips) if at not in {pair[k] for pair in self.pairs}]
            for k, (name, side) in enumerate((("a", self.a), ("b", self.b)))
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
    a, b = videos_at(paths, progress), videos_at([against], progress)
    pairs = paired(a, b)
    if not pairs:
        what = (
            f"no video has a partner in {against}: partners have the same prompt and seed, or the same name and prompt"
        )
        raise EvditError(what, where=f"--against {against}")
    for side, place in ((a, 0), (b, 1)):
        alone = sorted(set(range(len(side))) - {pair[place] for pair in pairs})
        if alone:
            names = ", ".join(side[at].path.name for at in alone[:NAMES_TOLD]) + (", ..." if alone[NAMES_TOLD:] else "")
            progress.say(f"{len(alone)} of {len(side)} videos of {'AB'[place]} have no partner: {names}")
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

    Of several that are alike the first goes with the first. In the order of `a`.
    """
    by_seed, by_name = _places(b, lambda video: video.seed), _places(b, lambda video: bare_name(video.path))
    found: dict[int, int] = {}
    for at, video in enumerate(a):
        if video.seed is not None and (same := by_seed[video.prompt, video.seed]):
            found[at] = same.pop(0)
    for at in sorted(set(range(len(a))) - set(found)):
        taken = set(found.values())
        for other in by_name[a[at].prompt, bare_name(a[at].path)]:
            if other not in taken and (a[at].seed is None or b[other].seed is None):
                found[at] = other
                break
    return sorted(found.items())


def _places(videos: Sequence[Video], name: Callable[[Video], Hashable]) -> dict[Hashable, list[int]]:
    """Where in `videos` each prompt with each name stands; [] where none does."""
    found: dict[Hashable, list[int]] = defaultdict(list)
    for at, video in enumerate(videos):
        found[video.prompt, name(video)].append(at)
    return found


def _closeness(pairs: Sequence[tuple[Video, Video]], work: Work) -> dict[str, Estimate]:
    """PSNR over the pairs that differ, SSIM over all, and the share of equal pairs."""
    keys = [f"pair {a.digest} {b.digest}" for a, b in pairs]
    calls = {key: (a.path, b.path) for key, (a, b) in zip(keys, pairs, strict=True)}
    found = work.results("comparing frames", compare_frames, calls)
    each = [found[key] for key in keys]
    numbers: dict[str, list[float | None]] = {name: [one[name] for one in each] for name in ("psnr", "ssim")}
    numbers["equal"] = [float(one["psnr"] is None) for one in each]
    return estimate(numbers, [a.prompt if a.prompt is not None else a.path.name for a, _ in pairs])
