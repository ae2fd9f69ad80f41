"""Jobs of the scripts that make results: trainings by their recipes, videos of the held-out prompts and their scores.

To choose, a video is made of each prompt from seed 0 on; to report, several from seed 100000 on. Line i of the prompts
has its own seeds, S + n i to S + n i + n - 1, and what is reported was not chosen by.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from side_by_side import Job, Step

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "recipes" / "prompts" / "shapes-held-out.txt"
CHOOSING, REPORT = "choosing", "report"
SEEDS = {CHOOSING: 0, REPORT: 100_000}
EVDIT = (sys.executable, "-m", "vdit_cli")
TRAINS, SHOWS = "training", "videos"
LANES = {TRAINS: 2, SHOWS: 3}
"""How many of them are at work on a GPU at once."""
ONE_KERNEL = ("--kernel", "sdpa")
"""That of all videos: `auto` would choose by times that are taken while a dozen others are at work."""
STUDENT = {"previews": "0", "checkpoint_every": "1000"}
"""What all trainings change of their recipes: no videos in between."""


@dataclass(frozen=True)
class Asked:
    """The prompts of all videos, how many are made at once, and how many of each prompt in the report."""

    prompts: Path = PROMPTS
    batch: int = 64
    num: int = 4


def training(
    run: Path, stage: str, data: Path, words: Sequence[str], settings: Mapping[str, str], after: Iterable[str]
) -> Job:
    """A run of a stage's recipe, but for some of its settings, as the job trained/NAME."""
    section = stage.replace("-", "_")
    told = [word for key, value in settings.items() for word in ("--set", f"{section}.{key}={value}")]
    recipe = ("--config", str(ROOT / "recipes" / f"{stage}.yaml"), "--data", str(data))
    command = (*EVDIT, stage, *recipe, *words, *told, "-o", str(run))
    return Job(f"trained/{run.name}", (Step(command),), TRAINS, tuple(after))


def videos(
    asked: Asked,
    kind: str,
    out: Path,
    words: Sequence[str],
    score: Path,
    *,
    name: str = "",
    against: Path | None = None,
    after: Iterable[str] = (),
    frechet: bool = True,
) -> Job:
    """Videos into `out` and what `evdit score` says of them, beside those of `against` where it is given, into `score`.

    Without `frechet` the world is not rendered for it, which takes as long as reading the videos. The job is KIND/NAME,
    the name that of the folder unless it is given; it waits for the job of `against` too.
    """
    seeds = ("--seed", str(SEEDS[kind]), "--num", str(asked.num if kind == REPORT else 1))
    common = ("--prompts-file", str(asked.prompts), "--batch", str(asked.batch), *seeds, *ONE_KERNEL)
    show = Step((*EVDIT, "generate", *common, *words, "-o", str(out)))
    other = (*(() if frechet else ("--no-world",)), *(("--against", str(against)) if against else ()))
    needs = (*after, *([f"{kind}/{against.name}"] if against else []))
    return Job(
        f"{kind}/{name or out.name}", (show, Step((*EVDIT, "score", str(out), *other, "--json"), score)), SHOWS, needs
    )


def say(line: str) -> None:
    """A line for the person, at once."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
