"""Make what docs/gather_masks.py gathers of the base and of a student: searches, plans, their videos and scores, costs.

python docs/make_masks.py runs/masks runs/trained/student-4

All GPUs of the machine work side by side; stopped or killed, the same command goes on. The searches come first, since
the plans follow from them; then every plan's videos (S = 0), those of a few with full attention in the first steps too,
and, of searched, uniform and shuffled plans, once more for the report (S = 100000, four videos a prompt): all of the
student, then all of the base, which takes ten times as long. What is timed comes last, on a machine that does nothing
else. In the end it says the words that docs/gather_masks.py wants.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from script import run
from side_by_side import Job, Step, gpus_here, run_side_by_side
from stage_jobs import CHOOSING, EVDIT, LANES, REPORT, TRAINS, Asked, say
from stage_jobs import videos as videos_of

from vdit_cli.errors import EvditError

HERE = Path(__file__).resolve().parent
ALONE = "alone"
"""The lane of what is timed, behind all others."""
REPORTED = re.compile(r"dense|uniform-.*|r-\d|random-3-\d|budget-\w+-3")
"""Plans that the report has too, of those at the kept share of the middle r."""
FIRST = re.compile(r"uniform-(?!8:0).*|r-3")
"""Plans that are also worn by the later steps alone."""


@dataclass(frozen=True)
class Sizes:
    """How much is made, and more words of each command."""

    asked: Asked = Asked()
    search: tuple[str, ...] = ("--num-prompts", "8")
    show: tuple[str, ...] = ()
    bench: tuple[str, ...] = ("--preset", "open-sora-plan-29")


def models(student: Path) -> dict[str, tuple[tuple[str, ...], int]]:
    """By the name of its folders, the words that name the model, and how many first steps are dense where some are."""
    return {student.name: (("--checkpoint", str(student)), 1), "base": ((), 12)}


def costs(folder: Path, sizes: Sizes) -> Iterator[Job]:
    """What attention takes in the size of a real model, of one branch (a student) and of two (the base)."""
    for batch in (1, 2):
        words = (*EVDIT, "bench", "attention", *sizes.bench, "--batch", str(batch))
        yield Job(f"costs-{batch}", (Step((*words, "-o", str(folder / f"costs-{batch}"))),), ALONE)


def searches(folder: Path, student: Path, sizes: Sizes) -> Iterator[Job]:
    """A search of each model by what its final output loses, and all plans that it is held against."""
    for name, (words, _) in models(student).items():
        search = (
            *EVDIT,
            "search-masks",
            *words,
            "--by",
            "output",
            *sizes.search,
            "-o",
            str(folder / "searches" / name),
        )
        plans = (sys.executable, str(HERE / "mask_plans.py"), str(folder / "searches" / name))
        yield Job(f"plans/{name}", (Step(search), Step((*plans, str(folder / "plans" / name)))), TRAINS)


def videos(folder: Path, student: Path, sizes: Sizes) -> Iterator[Job]:
    """The videos of every plan and their scores; those of a model's report behind its others."""
    for model, (words, dense_steps) in models(student).items():
        shown = dict[str, list[Job]]()
        for plan in sorted((folder / "plans" / model).glob("*.json")):
            masks = (*words, "--masks", str(plan))
            shown.setdefault(CHOOSING, []).append(shown_by(folder, sizes, CHOOSING, model, plan.stem, masks))
            if FIRST.fullmatch(plan.stem):
                later = (*masks, "--dense-steps", str(dense_steps))
                name = f"first-{dense_steps}-{plan.stem}"
                shown[CHOOSING].append(shown_by(folder, sizes, CHOOSING, model, name, later))
            if REPORTED.fullmatch(plan.stem):
                shown.setdefault(REPORT, []).append(shown_by(folder, sizes, REPORT, model, plan.stem, masks))
        for jobs in shown.values():
            yield from jobs


def shown_by(folder: Path, sizes: Sizes, kind: str, model: str, name: str, words: Sequence[str]) -> Job:
    """Videos and their score, of which no table has a Frechet distance."""
    out = folder / "videos" / kind / model / name
    file = folder / "scores" / (model if kind == CHOOSING else f"{model}-report") / f"{name}.json"
    return videos_of(sizes.asked, kind, out, (*sizes.show, *words), file, name=f"{model}/{name}", frechet=False)


def make(folder: Path, student: Path, sizes: Sizes, gpus: Sequence[str]) -> None:
    """Make all of it. Raises EvditError (1) where some of it failed."""
    lanes: Mapping[str, int] = {**LANES, ALONE: 1}
    run_side_by_side(list(searches(folder, student, sizes)), gpus, lanes, folder / "logs", say)
    run_side_by_side(list(videos(folder, student, sizes)), gpus, lanes, folder / "logs", say)
    run_side_by_side(list(costs(folder, sizes)), gpus, lanes, folder / "logs", say)
    costs_told = " ".join(str(folder / f"costs-{batch}") for batch in (1, 2))
    say(f"python docs/gather_masks.py {folder}/scores {folder}/plans {folder}/searches {costs_told}")


def main(words: Sequence[str]) -> None:
    """Make all of it in the folder. Raises EvditError for a student that is not there."""
    if len(words) != 2 or words[0].startswith("-"):
        raise EvditError(
            f"the script takes a folder and a student: {len(words)} words were given",
            next_steps=["python docs/make_masks.py runs/masks runs/trained/student-4"],
        )
    if not Path(words[1]).is_dir():
        raise EvditError(f"{words[1]} is no student that is there", next_steps=["python docs/make_students.py runs"])
    make(Path(words[0]), Path(words[1]), Sizes(), gpus_here())


if __name__ == "__main__":
    sys.exit(run(main))
