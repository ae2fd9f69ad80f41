"""Videos of runs side by side: those of the same prompt and seed, sorted by where the runs differ most.

`evdit score --against` (comparison.py) judges two sets in numbers; this shows two or more sets to the eye.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vdit_cli.artifacts.atomic import replacing_together
from vdit_cli.artifacts.frames import Frames
from vdit_cli.artifacts.run_form import known_manifest
from vdit_cli.artifacts.stills import is_frame
from vdit_cli.artifacts.video_file import check_output, encode, kind_of, read_frames
from vdit_cli.errors import EvditError, Interrupted, quoted
from vdit_cli.evaluation.comparison import NAMES_TOLD, paired
from vdit_cli.evaluation.side_by_side import Caption, Columns, Sheet
from vdit_cli.evaluation.videos import Video, bare_name, distinct, read_as, videos_at
from vdit_cli.measures import motion
from vdit_cli.timing import Progress

LARGE_PART = 4
"""Large motion is that of the first run's videos that move most, one in so many of the pairs."""
TITLE = "Where the runs differ most"
TITLES = {
    False: "Where the runs differ most, of the pairs that move less than the quarter below",
    True: "Large motion: where the runs differ most, of the quarter of all pairs that moves most",
}
"""Of the two groups of pairs on the sheet, by `Pair.is_large`; TITLE where one group is all there is to show."""


@dataclass(frozen=True)
class Pair:
    """The videos of one prompt and seed, one a run, and what was measured of them.

    `motion` is that of the first run's video (measures.motion); `differences` are mean absolute differences to it, of
    each later run, over all pixels and frames, in [0, 1].
    """

    videos: tuple[Video, ...]
    frames: int
    motion: float
    differences: tuple[float, ...]
    is_large: bool = False

    @property
    def difference(self) -> float:
        """The largest of the differences: where one run alone has broken, its pair comes first."""
        return max(self.differences)

    @property
    def name(self) -> str:
        """The prompt, or the first video's name where nothing tells one."""
        first = self.videos[0]
        return bare_name(first.path) if first.prompt is None else first.prompt

    def caption(self) -> Caption:
        """What stands at its pictures."""
        seed = "no seed is known" if self.videos[0].seed is None else f"seed {self.videos[0].seed}"
        large = ", large motion" if self.is_large else ""
        return Caption(self.name, f"{seed}, differs by {self.difference:.4f}{large}")


@dataclass(frozen=True)
class Compared:
    """What was found and what of it is shown: `pairs` are all, `shown` those in the pictures, in their order.

    `missing` names, for each later run, the first run's videos without a partner in it ("lacks"), and its own without
    one in the first run ("alone").
    """

    labels: tuple[str, ...]
    pairs: tuple[Pair, ...]
    shown: tuple[Pair, ...]
    missing: dict[str, dict[str, list[str]]]

    @property
    def large_from(self) -> float | None:
        """The least motion of the class of large motion; None where no pair is in it."""
        return min((pair.motion for pair in self.pairs if pair.is_large), default=None)

    def content(self) -> dict[str, Any]:
        """All of it as JSON values; the pairs that are shown first, as they stand in the pictures."""
        rest = [pair for pair in self.pairs if pair not in self.shown]
        return {
            "runs": list(self.labels),
            "pairs": len(self.pairs),
            "shown": len(self.shown),
            "left_out": len(rest),
            "missing": self.missing,
            "large_motion": {"pairs": sum(pair.is_large for pair in self.pairs), "from": self.large_from},
            "videos": [self._told(pair) for pair in (*self.shown, *rest)],
        }

    def _told(self, pair: Pair) -> dict[str, Any]:
        return {
            "prompt": pair.videos[0].prompt,
            "seed": pair.videos[0].seed,
            "shown": pair in self.shown,
            "motion": pair.motion,
            "large_motion": pair.is_large,
            "frames": pair.frames,
            "difference": pair.difference,
            "differences": dict(zip(self.labels[1:], pair.differences, strict=True)),
            "files": {label: str(video.path) for label, video in zip(self.labels, pair.videos, strict=True)},
        }


def compare(
    runs: Sequence[Path],
    output: Path,
    progress: Progress,
    *,
    limit: int,
    sheet: Path | None = None,
    labels: Sequence[str] = (),
    overwrite: bool = False,
) -> Compared:
    """Write the videos of `runs` that have the same prompt and seed side by side to `output`, one pair after another.

    At most `limit` pairs, half of them of large motion (`chosen`); `sheet` is a PNG of some frames of each. Few frames
    are in memory at once (of a .gif or .webp all that are written), and files are whole or not there. Raises EvditError
    for fewer than two runs, one given twice, labels that don't fit, no pair, and videos of other sizes, rates or
    lengths; Interrupted when the person asked to stop.
    """
    names = labels_of(runs, labels)
    check_output(output, overwrite)
    sides = [distinct(videos_at([run], progress), progress) for run in runs]
    rows, missing = together(names, sides, progress)
    _check_kept(output, rows, runs)
    rate, size = alike(rows)
    paper = Sheet(names, size, min(limit, len(rows))) if sheet else None
    pairs: list[Pair] = []
    progress.stage("comparing", len(rows))
    for row in rows:
        _stop_if_asked(progress, f"comparing was done for {len(pairs)} of {len(rows)} pairs")
        pairs.append(measured(row))
        progress.advance()
    pairs = classed(pairs)
    shown = chosen(pairs, limit)
    with replacing_together(output, *([sheet] if sheet else []), drop=is_frame) as (beside, *others):
        encode(beside, kind_of(output), columns_of(names, size, shown, progress), rate)
        if paper:
            draw_sheet(paper, shown, progress)
            paper.image.save(others[0], "PNG")
    return Compared(names, tuple(pairs), tuple(shown), missing)


def labels_of(runs: Sequence[Path], labels: Sequence[str]) -> tuple[str, ...]:
    """A label for each run: those given, or the shortest ends of their paths that tell all apart.

    Raises EvditError for fewer than two runs, one given twice, another number of labels, and a label twice.
    """
    if len(runs) < 2:
        example = "evdit compare runs/base runs/student -o side-by-side.mp4"
        raise EvditError("there is one run: two at least are compared", next_steps=[example])
    places = [run.resolve() for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            what = f"{run} is given {places.count(place)} times: a run differs from others"
            raise EvditError(what, where=str(run), next_steps=["another run"])
    if not labels:
        paths = [run.absolute().parts for run in runs]
        ends = (tuple("/".join(path[-parts:]) for path in paths) for parts in range(1, max(map(len, paths)) + 1))
        return next(names for names in ends if len(set(names)) == len(names))
    if len(labels) != len(runs):
        what = f"{len(labels)} labels don't fit {len(runs)} runs: each run needs its own"
        raise EvditError(what, where="--label", next_steps=["a --label for each run, in their order", "no --label"])
    for label in labels:
        if labels.count(label) > 1 or not label.strip():
            what = f"{label!r} is no label of one run: labels tell runs apart"
            raise EvditError(what, where=f"--label {quoted(label)}", next_steps=["another --label"])
    return tuple(labels)


def together(
    labels: Sequence[str], sides: Sequence[Sequence[Video]], progress: Progress
) -> tuple[list[tuple[Video, ...]], dict[str, dict[str, list[str]]]]:
    """(videos of the same prompt and seed, one a run; Compared.missing), as `paired` pairs; who is missing is said.

    Raises EvditError where no video has a partner in every run.
    """
    first, *others = sides
    lines: list[str] = []
    partners = [dict(paired(first, other)) for other in others]
    rows = [
        (video, *(other[partner[at]] for other, partner in zip(others, partners, strict=True)))
        for at, video in enumerate(first)
        if all(at in partner for partner in partners)
    ]
    missing = {}
    for label, other, partner in zip(labels[1:], others, partners, strict=True):
        lacks = [video.path.name for at, video in enumerate(first) if at not in partner]
        alone = [video.path.name for at, video in enumerate(other) if at not in partner.values()]
        missing[label] = {"lacks": lacks, "alone": alone}
        for names, count, of, where in ((lacks, len(first), labels[0], label), (alone, len(other), label, labels[0])):
            if names:
                told = ", ".join(names[:NAMES_TOLD]) + (", ..." if names[NAMES_TOLD:] else "")
                lines.append(f"{len(names)} of {count} videos of {of} have no partner in {where}: {told}")
    if not rows:
        what = f"no video of {labels[0]} has a partner in " + " and ".join(labels[1:])
        rule = "partners have the same prompt and seed, or the same name and prompt"
        step = "evdit generate with the same prompts and --seed for each run"
        raise EvditError(f"{what}: {rule}", next_steps=[step])
    for line in lines:
        progress.say(line)
    silent = sum(row[0].prompt is None for row in rows)
    if silent:
        progress.say(f"{silent} of {len(rows)} pairs are of equal names alone: no prompt of theirs is known")
    return rows, missing


def alike(rows: Sequence[Sequence[Video]]) -> tuple[Fraction, tuple[int, int]]:
    """(frames a second, (H, W)) of all videos. Raises EvditError, with two names, where they are not all the same."""
    first, standard = rows[0][0], read_frames(rows[0][0].path)[:2]
    for video in (video for row in rows for video in row):
        told = read_frames(video.path)[:2]
        if told != standard:
            sides = [
                f"{width} x {height} pixels at {rate} frames a second" for rate, (height, width) in (standard, told)
            ]
            rate, (height, width) = standard
            again = f"make it again by evdit generate --height {height} --width {width} --fps {rate}"
            raise _unlike(first, video, sides, again)
    return standard


def _check_kept(output: Path, rows: Sequence[Sequence[Video]], runs: Sequence[Path]) -> None:
    """Refuse an output that would replace one of the videos, or would count as one of a run's from then on."""
    folder, what = output.parent, None
    if output.resolve() in {video.path.resolve() for row in rows for video in row}:
        what = f"{output} is one of the videos that are compared: it would be replaced"
    elif folder.resolve() in {run.resolve() for run in runs} or _is_videos(folder):
        what = f"{output} would lie among the videos of {folder}, and count as one of them from then on"
    if what:
        raise EvditError(what, where=f"-o {output}", next_steps=["another place with -o"])


def _is_videos(folder: Path) -> bool:
    return (known_manifest(folder) or {}).get("command") == "generate"


def measured(row: Sequence[Video]) -> Pair:
    """The pair of the videos in a row, read frame by frame. Raises EvditError for other lengths, as `read_as` does."""
    steps: list[float] = []
    apart: list[list[float]] = []
    before = None
    with _unchanged(row):
        for frames in zip_longest(*(read_frames(video.path)[2] for video in row)):
            ended = [frame is None for frame in frames]
            if any(ended):
                short, long = row[ended.index(True)], row[ended.index(False)]
                sides = [f"{len(apart)} frames", "more"]
                raise _unlike(short, long, sides, "make one of the two again with the other's --frames")
            first = frames[0]
            apart.append([float(np.abs(np.subtract(frame, first, dtype=np.int16)).mean()) for frame in frames[1:]])
            if before is not None:
                steps.append(motion(np.stack([before, first])))
            before = first
    differences = (float(mean) / 255 for mean in np.mean(apart, axis=0))
    return Pair(tuple(row), len(apart), float(np.mean(steps)) if steps else 0.0, tuple(differences))


def _unlike(first: Video, other: Video, told: Sequence[str], again: str) -> EvditError:
    what = f"{first.path} has {told[0]}, {other.path} has {told[1]}: side by side all need one size, rate and length"
    return EvditError(what, where=str(other.path), next_steps=[again, f"move {quoted(other.path)} out of its folder"])


def classed(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, those that differ most first, with their classes of motion: one in LARGE_PART moves much."""
    moving = sorted((at for at, pair in enumerate(pairs) if pair.motion > 0), key=lambda at: -pairs[at].motion)
    large = set(moving[: len(pairs) // LARGE_PART])
    found = [replace(pair, is_large=at in large) for at, pair in enumerate(pairs)]
    return sorted(found, key=lambda pair: -pair.difference)


def chosen(pairs: Sequence[Pair], limit: int) -> list[Pair]:
    """At most `limit` of pairs that are sorted already: half of large motion, as far as there are, behind the others.

    Of each class those that differ most; what one class has too few for goes to the other. A single one is of either.
    """
    large, others = ([pair for pair in pairs if pair.is_large is wanted] for wanted in (True, False))
    if limit == 1:
        return list(pairs[:1])
    room = max(min(limit // 2, len(large)), limit - len(others))
    return [*others[: max(limit - room, 0)], *large[:room]]


def columns_of(labels: Sequence[str], size: tuple[int, int], pairs: Sequence[Pair], progress: Progress) -> Frames:
    """The frames of the pairs in columns, one pair after another. Raises Interrupted on the way when asked to stop."""
    columns = Columns(labels, size, [pair.caption() for pair in pairs])
    total = sum(pair.frames for pair in pairs)

    def pictures() -> Iterator[np.ndarray]:
        progress.stage("writing", total)
        done = 0
        for pair in pairs:
            with _unchanged(pair.videos):
                streams = [read_frames(video.path)[2] for video in pair.videos]
                for picture in columns.pictures(pair.caption(), streams):
                    _stop_if_asked(progress, f"writing was done for {done} of {total} frames")
                    yield picture
                    done += 1
                    progress.advance()

    return Frames((total, columns.height, columns.width, 3), pictures)


def draw_sheet(sheet: Sheet, pairs: Sequence[Pair], progress: Progress) -> None:
    """Draw some frames of each pair. Raises Interrupted between two pairs when asked to stop."""
    groups = {title: [pair.caption() for pair in pairs if pair.is_large is large] for large, title in TITLES.items()}
    sheet.begin(groups if all(groups.values()) else {TITLE: [pair.caption() for pair in pairs]})
    progress.stage("sheet", len(pairs))
    for block, pair in enumerate(pairs):
        _stop_if_asked(progress, f"the sheet was done for {block} of {len(pairs)} pairs")
        with _unchanged(pair.videos):
            for run, video in enumerate(pair.videos):
                sheet.place(block, run, pair.frames, read_frames(video.path)[2])
        progress.advance()


def _unchanged(videos: Sequence[Video]) -> AbstractContextManager[None]:
    return read_as(*((video.path, video.digest) for video in videos))


def _stop_if_asked(progress: Progress, told: str) -> None:
    if progress.should_stop():
        raise Interrupted(f"stopped: {told}, and no file was written")
