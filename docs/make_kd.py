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

from gather_kd import AFTER, DENSE, FIRST
from make_students import EVDIT, LANES, SHOWS, STUDENT, TRAINS, say
from script import folder_at, run
from side_by_side import Job, Step, gpus_here, run_side_by_side

from vdit_cli.errors import EvditError

ROOT = Path(__file__).resolve().parents[1]
PLANS = (
    *("uniform-4:4", "uniform-2:6", "uniform-1:7", "r-1", "r-2", "r-3", "r-4", "r-5"),
    *("random-3-0", "random-3-1", "budget-output-3"),
)
OTHER_ORDER = "r-3"
"""The plan under which KD also comes first, before MLCD."""


@dataclass(frozen=True)
class Sizes:
    """How much is made: plans, prompts, videos at once, videos a prompt in the report, settings of the trainings."""

    plans: tuple[str, ...] = PLANS
    prompts: Path = ROOT / "recipes" / "prompts" / "shapes-held-out.txt"
    batch: int = 64
    num: int = 4
    rest: dict[str, str] = field(default_factory=lambda: dict(STUDENT))


@dataclass(frozen=True)
class Asked:
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


def training(asked: Asked, sizes: Sizes, stage: str, name: str, words: Sequence[str], *after: str) -> Job:
    """A run of the recipe of a stage, `distill-kd` or `distill-mlcd`."""
    section = stage.replace("-", "_")
    told = [word for key, value in sizes.rest.items() for word in ("--set", f"{section}.{key}={value}")]
    recipe = ("--config", str(ROOT / "recipes" / f"{stage}.yaml"), "--data", str(asked.data))
    command = (*EVDIT, stage, *recipe, *words, *told, "-o", asked.trained(name))
    return Job(f"trained/{name}", (Step(command),), TRAINS, after)


def trainings(asked: Asked, sizes: Sizes) -> Iterator[Job]:
    """KD under every plan, and of one plan KD of the model itself with MLCD behind it."""
    first = ("--masks", asked.plan(OTHER_ORDER), "--allow-other-weights")
    yield training(asked, sizes, "distill-kd", "first", first)
    yield training(asked, sizes, "distill-mlcd", "then", ("--checkpoint", asked.trained("first")), "trained/first")
    for name in sizes.plans:
        words = ("--checkpoint", str(asked.student), "--masks", asked.plan(name))
        yield training(asked, sizes, "distill-kd", name, words)


def shown(asked: Asked, sizes: Sizes, kind: str, name: str, words: Sequence[str], *after: str) -> Job:
    """Videos as PNGs, so that PSNR and SSIM are not those of an encoding, and their score against the dense ones."""
    videos = asked.folder / "videos" / kind
    common = ("--prompts-file", str(sizes.prompts), "--batch", str(sizes.batch), "--files", "png")
    many = ("--seed", "0") if kind == "choosing" else ("--seed", "100000", "--num", str(sizes.num))
    show = (*EVDIT, "generate", *common, *many, *words, "-o", str(videos / name))
    against = () if name == DENSE else ("--against", str(videos / DENSE))
    score = (*EVDIT, "score", str(videos / name), *against, "--json")
    needs = after if name == DENSE else (*after, f"{kind}/{DENSE}")
    return Job(
        f"{kind}/{name}", (Step(show), Step(score, asked.folder / f"scores-{kind}" / f"{name}.json")), SHOWS, needs
    )


def videos(asked: Asked, sizes: Sizes, kind: str) -> Iterator[Job]:
    """Dense, and of each plan before and after KD."""
    yield shown(asked, sizes, kind, DENSE, ("--checkpoint", str(asked.student)))
    trained = {f"{name}{AFTER}": name for name in sizes.plans} | {f"{OTHER_ORDER}{FIRST}": "then"}
    for name in sizes.plans:
        words = ("--checkpoint", str(asked.student), "--masks", asked.plan(name))
        yield shown(asked, sizes, kind, name, words)
    for name, of in trained.items():
        yield shown(asked, sizes, kind, name, ("--checkpoint", asked.trained(of)), f"trained/{of}")


def jobs(asked: Asked, sizes: Sizes) -> list[Job]:
    """All of it, the report last."""
    made = [*trainings(asked, sizes), *videos(asked, sizes, "choosing")]
    return [*made, *videos(asked, sizes, "report")]


def main(words: Sequence[str]) -> None:
    """Make all of it in the folder. Raises EvditError for folders that are not there."""
    if len(words) != 4 or words[0].startswith("-"):
        raise EvditError(
            f"the script takes a folder, a student, a folder of plans and data: {len(words)} words were given",
            next_steps=["python docs/make_kd.py runs/kd runs/trained/student-4 runs/masks/plans/student-4 runs/data"],
        )
    asked = Asked(Path(words[0]), *map(folder_at, words[1:]))
    run_side_by_side(jobs(asked, Sizes()), gpus_here(), LANES, asked.folder / "logs", say)
    say(f"python docs/gather_kd.py {asked.folder}/scores-report {asked.plans} SEARCH COSTS")


if __name__ == "__main__":
    sys.exit(run(main))
