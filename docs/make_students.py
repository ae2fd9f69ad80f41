"""Make what docs/gather_students.py gathers: data, students, their videos and those of the base, and all scores.

python docs/make_students.py runs

All GPUs of the machine work side by side; stopped or killed, the same command goes on. Each command that it runs stands
in runs/logs. First comes the base in fewer steps (S = 0), by which the best control of each step count is chosen. Then
everything is trained and shown, and the base, the controls and the students once more for the report (S = 100000, four
videos a prompt).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gather_students import best_controls, read_scores
from script import run
from side_by_side import Job, Step, gpus_here, run_side_by_side
from stage_jobs import CHOOSING, EVDIT, LANES, REPORT, ROOT, SEEDS, STUDENT, TRAINS, Asked, say
from stage_jobs import training as training_of
from stage_jobs import videos as videos_of

from vdit_cli.errors import EvditError
from vdit_cli.sampling.prompts import read_prompts

BY_ADAMW = {"muon_rate": "0", "learning_rate": "1e-3"}
EVEN = {"milestones": "[]"}
ABLATIONS: Mapping[str, Mapping[str, str]] = {
    "teacher-points-2,5,25": {"teacher_points": "[2,5,25]", "teacher_substeps": "1", "teacher_reuse": "1"},
    "teacher-points-2,5,25,-target-average": {
        "teacher_points": "[2,5,25]",
        "teacher_substeps": "1",
        "teacher_reuse": "1",
        "target": "average",
    },
    "weight-1": {"weight_cap": "1"},
    "guidance-kept": {"guidance": "kept"},
    "no-muon": {"muon_rate": "0"},
    "even-milestones": EVEN,
    "each-answer-learned-from-once": {"teacher_reuse": "1"},
}
CONTROLS = [
    *(
        (steps, solver, "trailing", guidance)
        for steps in (20, 8, 4, 2)
        for solver in ("dpm++2m", "ddim", "unipc")
        for guidance in ("2", "1")
    ),
    (4, "dpm++2m", "trailing", "1.5"),
    (4, "dpm++2m", "trailing", "3"),
    (4, "ddim", "trailing", "3"),
    (4, "ddim", "800,600,400,200", "2"),
    (2, "ddim", "750,250", "2"),
    (2, "ddim", "750,250", "1.5"),
]
"""Steps, solver, spacing or timesteps, guidance."""


@dataclass(frozen=True)
class Sizes:
    """How much is made: clips, iterations of the student of 4 steps (LoRA too) and of all others, ranks, prompts."""

    clips: int = 20_128
    iterations: int = 2000
    short: int = 800
    ranks: tuple[int, ...] = (32, 16)
    asked: Asked = Asked()
    rest: Mapping[str, str] = field(default_factory=dict)
    """More settings of every training."""
    base: tuple[str, ...] = ()
    """More words of what the base does in its own steps."""


def training(runs: Path, sizes: Sizes, name: str, steps: str, *words: str, **changes: str) -> Job:
    """A student of the recipe, but for `changes` of its settings, after the data or the student that starts it."""
    settings = {**STUDENT, "iterations": str(sizes.iterations), **sizes.rest, **changes}
    start = f"trained/{Path(words[words.index('--checkpoint') + 1]).name}" if "--checkpoint" in words else "data"
    run, words = runs / "trained" / name, ("--steps", steps, *words)
    return training_of(run, "distill-mlcd", runs / "data", words, settings, (start,))


def trainings(runs: Path, sizes: Sizes) -> Iterator[Job]:
    """The data and all students, those that take longest or that others wait for first."""
    recipe = ("--config", str(ROOT / "recipes" / "prepare-data.yaml"), "--count", str(sizes.clips))
    yield Job("data", (Step((*EVDIT, "prepare-data", *recipe, "-o", str(runs / "data"))),), TRAINS)
    short = {"iterations": str(sizes.short)}
    yield training(runs, sizes, "in-one-run", "20,8,4,2", **short)
    yield training(runs, sizes, "student-4", "4")
    start = ("--checkpoint", str(runs / "trained" / "student-4"))
    yield training(runs, sizes, "student-2", "2", *start, **short, milestones="[999,549]", teacher_substeps="8")
    for rank in sizes.ranks:
        yield training(runs, sizes, f"student-4-lora-{rank}", "4", "--lora-rank", str(rank), **BY_ADAMW)
    for clips in (20_000, 2000, 200):
        yield training(runs, sizes, f"data-{clips}", "4", **short, clips=str(min(clips, sizes.clips * 7 // 8)))
    for name, changes in ABLATIONS.items():
        yield training(runs, sizes, f"ablation-{name}", "4", **{**short, **changes})


def videos(runs: Path, sizes: Sizes, kind: str, name: str, words: Sequence[str], other: str | None, *after: str) -> Job:
    """Videos of all prompts and their score, against the videos `other` where that is given."""
    file = runs / "scores" / kind / f"{name}{f'-against-{other}' if other else ''}.json"
    against = runs / kind / other if other else None
    return videos_of(sizes.asked, kind, runs / kind / name, words, file, against=against, after=after)


def control_name(steps: int, solver: str, spacing: str, guidance: str) -> str:
    """The name of a control's videos."""
    return f"control-{steps}-{solver}-{spacing}-g{guidance}"


def control_words(name: str) -> tuple[str, ...]:
    """The flags of a control by its name."""
    steps, solver, spacing, guidance = next(each for each in CONTROLS if control_name(*each) == name)
    return ("--steps", str(steps), "--scheduler", solver, "--timesteps", spacing, "--guidance", guidance)


def models(runs: Path, sizes: Sizes) -> dict[str, tuple[Path, str]]:
    """By the name of its videos, what is sampled of each training, and the training."""
    made = {
        job.name.removeprefix("trained/"): (runs / job.name, job.name)
        for job in trainings(runs, sizes)
        if job.name not in ("data", "trained/in-one-run")
    }
    one = "trained/in-one-run"
    return made | {f"student-{n}-in-one-run": (runs / one / f"steps-{n}" / "student", one) for n in (20, 8, 4, 2)}


def chosen_by(name: str) -> str | None:
    """What the videos of a model are compared with in choosing."""
    if name.startswith("ablation-"):
        return "data-20000"
    return "student-4" if name.startswith("student-4-lora-") else None


def controls(runs: Path, sizes: Sizes) -> Iterator[Job]:
    """The base in its own steps and in fewer, by every solver."""
    yield videos(runs, sizes, CHOOSING, "base-50", sizes.base, None)
    for each in CONTROLS:
        name = control_name(*each)
        yield videos(runs, sizes, CHOOSING, name, control_words(name), None)


def choosing(runs: Path, sizes: Sizes) -> Iterator[Job]:
    """All that is trained, and its videos."""
    yield from trainings(runs, sizes)
    made = models(runs, sizes)
    for name in sorted(made, key=lambda name: chosen_by(name) is not None):
        place, job = made[name]
        yield videos(runs, sizes, CHOOSING, name, ("--checkpoint", str(place)), chosen_by(name), job)


def report(runs: Path, sizes: Sizes, best: Mapping[int, str]) -> Iterator[Job]:
    """The base, the best controls, and against these the students."""
    yield videos(runs, sizes, REPORT, "base-50", sizes.base, None)
    for name in best.values():
        yield videos(runs, sizes, REPORT, name, control_words(name), None)
    for name, (place, job) in models(runs, sizes).items():
        if name.startswith("student-"):
            control = best[int(name.split("-")[1])]
            yield videos(runs, sizes, REPORT, name, ("--checkpoint", str(place)), control, job)


def make(runs: Path, sizes: Sizes, gpus: Sequence[str]) -> None:
    """Make all of it. Raises EvditError (1) where some of it failed."""
    run_side_by_side(list(controls(runs, sizes)), gpus, LANES, runs / "logs", say)
    scores = read_scores(runs / "scores" / CHOOSING, SEEDS[CHOOSING], read_prompts(sizes.asked.prompts))
    jobs = [*choosing(runs, sizes), *report(runs, sizes, best_controls(scores))]
    run_side_by_side(jobs, gpus, LANES, runs / "logs", say)


def main(words: Sequence[str]) -> None:
    """Make all of it in the folder. Raises EvditError (2) for other words."""
    if len(words) != 1 or words[0].startswith("-"):
        raise EvditError(
            f"the script takes a folder: {len(words)} words were given",
            next_steps=["python docs/make_students.py runs"],
        )
    make(Path(words[0]), Sizes(), gpus_here())


if __name__ == "__main__":
    sys.exit(run(main))
