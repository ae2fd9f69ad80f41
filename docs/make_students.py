"""Make what docs/gather_students.py gathers: data, students, their videos and those of the base, and all scores.

python docs/make_students.py runs

All GPUs of the machine work side by side; stopped or killed, the same command goes on. Each command that it runs stands
in runs/logs. First everything is trained and chosen (S = 0), then the base, the best control at each step count and the
students are made once more for the report (S = 100000, four videos a prompt).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gather_students import CHOOSING, PROMPTS, REPORT, ROOT, SEEDS, best_controls, read_scores
from script import run
from side_by_side import Job, Step, gpus_here, run_side_by_side

from vdit_cli.errors import EvditError
from vdit_cli.sampling.prompts import read_prompts

EVDIT = (sys.executable, "-m", "vdit_cli")
TRAINS, SHOWS = "training", "videos"
LANES = {TRAINS: 2, SHOWS: 3}
"""How many of them are at work on a GPU at once."""
STUDENT = {"previews": "0", "checkpoint_every": "1000"}
BY_ADAMW = {"muon_rate": "0", "learning_rate": "1e-3"}
EVEN = {"milestones": "[]"}
ABLATIONS: Mapping[str, Mapping[str, str]] = {
    "no-muon": {"muon_rate": "0"},
    "even-milestones": EVEN,
    "each-answer-learned-from-once": {"teacher_reuse": "1"},
    "teacher-points-2,5,25": {"teacher_points": "[2,5,25]", "teacher_substeps": "1", "teacher_reuse": "1"},
    "teacher-points-2,5,25,-target-average": {
        "teacher_points": "[2,5,25]",
        "teacher_substeps": "1",
        "teacher_reuse": "1",
        "target": "average",
    },
    "weight-1": {"weight_cap": "1"},
    "guidance-kept": {"guidance": "kept"},
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
    """How much is made: clips, iterations of a student and of those compared among each other, prompts, LoRA ranks."""

    clips: int = 20_128
    iterations: int = 4000
    short: int = 1200
    prompts: Path = PROMPTS
    batch: int = 64
    num: int = 4
    ranks: tuple[int, ...] = (32, 16, 8)
    rest: Mapping[str, str] = field(default_factory=dict)
    """More settings of every training."""
    base: tuple[str, ...] = ()
    """More words of what the base does in its own steps."""


def training(runs: Path, sizes: Sizes, name: str, steps: str, *words: str, **changes: str) -> Job:
    """A student of the recipe, but for `changes` of its settings, after the data or the student that starts it."""
    settings = {**STUDENT, "iterations": str(sizes.iterations), **sizes.rest, **changes}
    told = [word for key, value in settings.items() for word in ("--set", f"distill_mlcd.{key}={value}")]
    recipe = ("--config", str(ROOT / "recipes" / "distill-mlcd.yaml"), "--data", str(runs / "data"))
    command = (*EVDIT, "distill-mlcd", *recipe, "--steps", steps, *words, *told, "-o", str(runs / "trained" / name))
    start = f"trained/{Path(words[words.index('--checkpoint') + 1]).name}" if "--checkpoint" in words else "data"
    return Job(f"trained/{name}", (Step(command),), TRAINS, (start,))


def trainings(runs: Path, sizes: Sizes) -> Iterator[Job]:
    """The data and all students, those that others wait for first."""
    recipe = ("--config", str(ROOT / "recipes" / "prepare-data.yaml"), "--count", str(sizes.clips))
    yield Job("data", (Step((*EVDIT, "prepare-data", *recipe, "-o", str(runs / "data"))),), TRAINS)
    short = {"iterations": str(sizes.short)}
    yield training(runs, sizes, "student-4", "4")
    yield training(runs, sizes, "in-one-run", "20,8,4,2", **short)
    start = ("--checkpoint", str(runs / "trained" / "student-4"))
    two = {"milestones": "[999,549]", "teacher_substeps": "8", "iterations": str(sizes.iterations // 2)}
    yield training(runs, sizes, "student-2", "2", *start, **two)
    for rank in sizes.ranks:
        yield training(runs, sizes, f"student-4-lora-{rank}", "4", "--lora-rank", str(rank), **BY_ADAMW)
    yield training(runs, sizes, "student-8", "8", **EVEN)
    yield training(runs, sizes, "student-20", "20", **EVEN, **short)
    for clips in (20_000, 2000, 200):
        yield training(runs, sizes, f"data-{clips}", "4", **short, clips=str(min(clips, sizes.clips * 7 // 8)))
    for name, changes in ABLATIONS.items():
        yield training(runs, sizes, f"ablation-{name}", "4", **{**short, **changes})


def videos(runs: Path, sizes: Sizes, kind: str, name: str, words: Sequence[str], other: str | None, *after: str) -> Job:
    """Videos of all prompts and their score, against the videos `other` where that is given."""
    out, num = runs / kind / name, sizes.num if kind == REPORT else 1
    common = ("--prompts-file", str(sizes.prompts), "--batch", str(sizes.batch), "--seed", str(SEEDS[kind]))
    show = (*EVDIT, "generate", *common, "--num", str(num), *words, "-o", str(out))
    against = ("--against", str(runs / kind / other)) if other else ()
    score = (*EVDIT, "score", str(out), *against, "--json")
    file = runs / "scores" / kind / f"{name}{f'-against-{other}' if other else ''}.json"
    needs = (*after, *([f"{kind}/{other}"] if other else []))
    return Job(f"{kind}/{name}", (Step(show), Step(score, file)), SHOWS, needs)


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


def choosing(runs: Path, sizes: Sizes) -> Iterator[Job]:
    """All that is made to choose among: what is trained, and every control beside it."""
    yield from trainings(runs, sizes)
    yield videos(runs, sizes, CHOOSING, "base-50", sizes.base, None)
    for each in CONTROLS:
        name = control_name(*each)
        yield videos(runs, sizes, CHOOSING, name, control_words(name), None)
    made = models(runs, sizes)
    for name in sorted(made, key=lambda name: chosen_by(name) is not None):
        place, job = made[name]
        yield videos(runs, sizes, CHOOSING, name, ("--checkpoint", str(place)), chosen_by(name), job)


def report(runs: Path, sizes: Sizes, best: Mapping[int, str]) -> Iterator[Job]:
    """The base, the best controls, and against these the students."""
    yield videos(runs, sizes, REPORT, "base-50", sizes.base, None)
    for name in best.values():
        yield videos(runs, sizes, REPORT, name, control_words(name), None)
    for name, (place, _) in models(runs, sizes).items():
        if name.startswith("student-"):
            control = best[int(name.split("-")[1])]
            yield videos(runs, sizes, REPORT, name, ("--checkpoint", str(place)), control)


def make(runs: Path, sizes: Sizes, gpus: Sequence[str]) -> None:
    """Make all of it. Raises EvditError (1) where some of it failed."""
    run_side_by_side(list(choosing(runs, sizes)), gpus, LANES, runs / "logs", say)
    scores = read_scores(runs / "scores" / CHOOSING, SEEDS[CHOOSING], read_prompts(sizes.prompts))
    run_side_by_side(list(report(runs, sizes, best_controls(scores))), gpus, LANES, runs / "logs", say)


def say(line: str) -> None:
    """A line for the person, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


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
