"""Make what docs/gather_kd.py gathers of a student: KD under plans, its videos before and after, both orders, scores.

python docs/make_kd.py runs/kd runs/trained/student-4 runs/masks/plans/student-4 runs/data

The plans are those of docs/mask_plans.py. All GPUs of the machine work side by side; stopped or killed, the same
command goes on. First all is trained and shown (S = 0), then shown again for the report (S = 100000, four videos each).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import stage_jobs
from gather_kd import AFTER, DENSE, FIRST
from script import folder_at, run
from side_by_side import Job, gpus_here, run_side_by_side
from stage_jobs import CHOOSING, LANES, REPORT, STUDENT, say

from vdit_cli.errors import EvditError

PLANS = (
    *("uniform-4:4", "uniform-2:6", "uniform-1:7", "r-1", "r-2", "r-3", "r-4", "r-5"),
    *("random-3-0", "random-3-1", "budget-output-3"),
)
OTHER_ORDER = "r-3"
"""The plan under which KD also comes first, before MLCD."""


@dataclass(frozen=True)
class Sizes:
    """How much is made: plans, prompts, settings of the trainings."""

    plans: tuple[str, ...] = PLANS
    asked: stage_jobs.Asked = stage_jobs.Asked()
    rest: dict[str, str] = field(default_factory=lambda: dict(STUDENT))


@dataclass(frozen=True)
class Folders:
    """The folder that all goes to, the student, the folder of plans, the data."""

    folder: Path
    student: Path
    plans: Path
    data: Path

    def plan(self, name: str) -> str:
        """The file of a plan."""
        return str(self.plans / f"{name}.json")

    def trained(self, name: str) -> str:
        """The run of a training."""
        return str(self.folder / "trained" / name)


def training(folders: Folders, sizes: Sizes, stage: str, name: str, words: Sequence[str], *after: str) -> Job:
    """A run of the recipe of a stage, `distill-kd` or `distill-mlcd`."""
    return stage_jobs.training(Path(folders.trained(name)), stage, folders.data, words, sizes.rest, after)


def trainings(folders: Folders, sizes: Sizes) -> Iterator[Job]:
    """KD under every plan, and of one plan KD of the model itself with MLCD behind it."""
    first = ("--masks", folders.plan(OTHER_ORDER), "--allow-other-weights")
    yield training(folders, sizes, "distill-kd", "first", first)
    yield training(folders, sizes, "distill-mlcd", "then", ("--checkpoint", folders.trained("first")), "trained/first")
    for name in sizes.plans:
        words = ("--checkpoint", str(folders.student), "--masks", folders.plan(name))
        yield training(folders, sizes, "distill-kd", name, words)


def shown(folders: Folders, sizes: Sizes, kind: str, name: str, words: Sequence[str], *after: str) -> Job:
    """Videos as PNGs, so that PSNR and SSIM are not those of an encoding, and their score against the dense ones."""
    place = folders.folder / "videos" / kind
    return stage_jobs.videos(
        sizes.asked,
        kind,
        place / name,
        ("--files", "png", *words),
        folders.folder / f"scores-{kind}" / f"{name}.json",
        against=None if name == DENSE else place / DENSE,
        after=after,
    )


def videos(folders: Folders, sizes: Sizes, kind: str) -> Iterator[Job]:
    """Dense, and of each plan before and after KD."""
    yield shown(folders, sizes, kind, DENSE, ("--checkpoint", str(folders.student)))
    trained = {f"{name}{AFTER}": name for name in sizes.plans} | {f"{OTHER_ORDER}{FIRST}": "then"}
    for name in sizes.plans:
        words = ("--checkpoint", str(folders.student), "--masks", folders.plan(name))
        yield shown(folders, sizes, kind, name, words)
    for name, of in trained.items():
        yield shown(folders, sizes, kind, name, ("--checkpoint", folders.trained(of)), f"trained/{of}")


def jobs(folders: Folders, sizes: Sizes) -> list[Job]:
    """All of it, the report last."""
    made = [*trainings(folders, sizes), *videos(folders, sizes, CHOOSING)]
    return [*made, *videos(folders, sizes, REPORT)]


def main(words: Sequence[str]) -> None:
    """Make all of it in the folder. Raises EvditError for folders that are not there."""
    if len(words) != 4 or words[0].startswith("-"):
        raise EvditError(
            f"the script takes a folder, a student, a folder of plans and data: {len(words)} words were given",
            next_steps=["python docs/make_kd.py runs/kd runs/trained/student-4 runs/masks/plans/student-4 runs/data"],
        )
    folders = Folders(Path(words[0]), *map(folder_at, words[1:]))
    run_side_by_side(jobs(folders, Sizes()), gpus_here(), LANES, folders.folder / "logs", say)
    say(f"python docs/gather_kd.py {folders.folder}/scores-report {folders.plans} SEARCH COSTS")


if __name__ == "__main__":
    sys.exit(run(main))
