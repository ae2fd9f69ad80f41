"""docs/make_students.py: its commands are ones that evdit takes, and docs/gather_students.py takes what they leave."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.every.test_documented_commands import faults, flags_by_command
from tests.every.test_gather_students import PROMPTS, ROOT, score_of, write_score, write_trained
from vdit_cli.distillation.mlcd_job import check_options, step_counts
from vdit_cli.distillation.mlcd_segments import check_segments
from vdit_cli.errors import EvditError
from vdit_cli.recipe import load


@pytest.fixture
def students(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    import make_students

    return make_students


def plan_of(students: ModuleType, runs: Path) -> list:
    """All jobs, with controls that were the best."""
    best = {n: students.control_name(*next(each for each in students.CONTROLS if each[0] == n)) for n in (20, 8, 4, 2)}
    sizes = students.Sizes()
    return [*students.controls(runs, sizes), *students.choosing(runs, sizes), *students.report(runs, sizes, best)]


def test_every_command_is_one_that_evdit_takes(students: ModuleType, tmp_path: Path):
    known = flags_by_command()
    commands = [step.words for job in plan_of(students, tmp_path) for step in job.steps]
    assert len(commands) > 100
    for words in commands:
        assert tuple(words[:3]) == (sys.executable, "-m", "vdit_cli")
        assert not faults(" ".join(words[3:]), known)


def test_every_student_is_one_that_can_be_trained(students: ModuleType, tmp_path: Path):
    """The recipe with its settings: counts, curricula and milestones fit."""
    trainings = [job for job in students.trainings(tmp_path, students.Sizes()) if job.name != "data"]
    assert len(trainings) == 15
    for job in trainings:
        words = list(job.steps[0].words)
        pairs = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        pairs.append(f"distill_mlcd.data={words[words.index('--data') + 1]}")
        pairs.append(f"distill_mlcd.steps={words[words.index('--steps') + 1]!r}")
        options = load(words[words.index("--config") + 1], pairs).distill_mlcd
        check_options(options)
        check_segments(options, step_counts(options), 1000)


def test_videos_wait_for_their_model_and_for_what_they_are_compared_with(students: ModuleType, tmp_path: Path):
    jobs = {job.name: job for job in plan_of(students, tmp_path)}
    assert jobs["choosing/student-4-lora-16"].after == ("trained/student-4-lora-16", "choosing/student-4")
    assert jobs["choosing/student-2-in-one-run"].after == ("trained/in-one-run",)
    assert jobs["trained/student-2"].after == ("trained/student-4",)
    assert jobs["report/student-8-in-one-run"].after == ("trained/in-one-run", "report/control-8-dpm++2m-trailing-g2")
    assert jobs["report/student-2"].after == ("trained/student-2", "report/control-2-dpm++2m-trailing-g2")
    seeds = {
        words[words.index("--seed") + 1] for job in jobs.values() for words in [job.steps[0].words] if "--seed" in words
    }
    assert seeds == {"0", "100000"}


def test_what_is_made_can_be_gathered(students: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each score that a job leaves, made up here in its place: the report is against the best controls of these."""
    import gather_students

    def instead(jobs: Sequence, gpus: Sequence[str], lanes: dict, logs: Path, say: object) -> None:
        for job in jobs:
            kind, _, name = job.name.partition("/")
            if kind == "trained" and name.startswith("data-"):
                (tmp_path / "trained" / name).mkdir(parents=True)
                write_trained(tmp_path / "trained" / name, (0.5, 0.25))
            if kind not in ("choosing", "report"):
                continue
            folder = tmp_path / "scores" / kind
            folder.mkdir(parents=True, exist_ok=True)
            right = "yyys" if "unipc" in name else "yyss"
            mine = score_of(right if kind == "choosing" else right * 2, students.SEEDS[kind])
            other = job.steps[1].to.stem.partition("-against-")[2]
            write_score(folder, name, mine, (other, mine) if other else None)
            assert (folder / job.steps[1].to.name).is_file()

    monkeypatch.setattr(students, "run_side_by_side", instead)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    students.make(tmp_path, students.Sizes(asked=students.Asked(prompts=prompts)), ("0",))
    tables = gather_students.gather(tmp_path / "scores", tmp_path / "trained", PROMPTS)["tables"]
    names = [row["name"] for row in tables["students"]["rows"]]
    assert "base, 4 steps, UniPC, trailing, guidance 2" in names and "student, 2 steps" in names
    assert all(len(table["rows"]) > 2 for table in tables.values())


@pytest.mark.parametrize("words", [[], ["--help"], ["one", "two", "three"]])
def test_other_words_are_refused(students: ModuleType, words: list[str]):
    """By each of the scripts that make things, with a line to paste."""
    import make_kd
    import make_masks

    for script in (students, make_masks, make_kd):
        with pytest.raises(EvditError, match="^the script takes") as caught:
            script.main(words)
        assert caught.value.next_steps[0].startswith(f"python docs/{script.__name__}.py runs")
