"""The stages that `evdit run` knows: what each takes of the ones before, and the function of its own command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.artifacts.digest import content_digest
from vdit_cli.artifacts.run_dir import Request, RunDir
from vdit_cli.data.prepare_data import prepare_data
from vdit_cli.data.sources import check_source
from vdit_cli.distillation.distill_kd import distill_kd
from vdit_cli.distillation.distill_mlcd import distill_mlcd
from vdit_cli.distillation.kd_job import check_kd_options
from vdit_cli.distillation.mlcd_job import check_options, step_counts
from vdit_cli.evaluation.score import score
from vdit_cli.recipe import Recipe
from vdit_cli.sampling import generate as generation
from vdit_cli.sampling.plans import check_kernel
from vdit_cli.search.choose_again import choose_again
from vdit_cli.search.search_masks import search_masks
from vdit_cli.timing import Progress

READINGS, SCORE = "readings.jsonl", "score.json"


@dataclass(frozen=True)
class Work:
    """A stage to carry out: its section with what the stages before made filled in, and its folder.

    `videos` is the folder of the videos that were made last.
    """

    name: str
    options: Any
    folder: Path
    recipe: Recipe
    videos: Path | None
    allow_changed: bool


@dataclass(frozen=True)
class Stage:
    """What a stage takes of what those before made, of that what it can't do without, what it makes, and how.

    `check` refuses options that mean nothing, before any stage begins; `carry_out` is the whole work.
    """

    takes: tuple[str, ...]
    needs: tuple[str, ...]
    makes: str
    check: Callable[[Any], Any]
    carry_out: Callable[[Work, Progress], Any]


def _prepare_data(work: Work, progress: Progress) -> None:
    prepare_data(work.options, work.folder, progress)


def _check_mlcd(options: Any) -> None:
    step_counts(options)
    check_options(options)


def _distill_mlcd(work: Work, progress: Progress) -> None:
    distill_mlcd(work.options, work.folder, progress, work.allow_changed)


def _search(work: Work, progress: Progress) -> None:
    search = search_masks if work.options.sensitivity is None else choose_again
    search(work.options, work.folder, progress)


def _distill_kd(work: Work, progress: Progress) -> None:
    distill_kd(work.options, work.folder, progress, work.allow_changed)


def _generate(work: Work, progress: Progress) -> None:
    asked = generation.Asked(prompts_file=Path(work.recipe.run.prompts_file or ""), out=work.folder)
    generation.generate(work.options, asked, progress)


def _score(work: Work, progress: Progress) -> None:
    """Score the videos of the stage before into `score.json`, a run by the digests of these videos."""
    assert work.videos is not None, "checked before any stage began"
    made = RunDir.open(work.videos).manifest["outputs"]
    values = {"videos": content_digest({role: each["sha256"] for role, each in made.items()})}
    run = RunDir.start(work.folder, Request("score", work.recipe.run.model, values))
    if run.is_done():
        progress.say(f"{run.path} is done already")
        return
    with run:
        found = score([work.videos], progress=progress, kept=run.path / READINGS)
        write_json(run.path / SCORE, {"schema": "evdit.score/1", **found.content()})
        run.add_output("score", SCORE)


STUDENT = ("data", "checkpoint", "masks")
STAGES: dict[str, Stage] = {
    "prepare_data": Stage((), (), "data", check_source, _prepare_data),
    "distill_mlcd": Stage(STUDENT, ("data",), "checkpoint", _check_mlcd, _distill_mlcd),
    "search_masks": Stage(("checkpoint",), (), "masks", lambda options: check_kernel(options.kernel), _search),
    "distill_kd": Stage(STUDENT, ("data",), "checkpoint", check_kd_options, _distill_kd),
    "generate": Stage(("checkpoint", "masks"), (), "videos", generation.check_options, _generate),
    "score": Stage((), ("videos",), "score", lambda options: None, _score),
}
"""By section, in the order of the method."""
