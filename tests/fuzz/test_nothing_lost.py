"""Commands with odd places, faults and interrupts, drawn from fixed seeds: nothing is lost, nothing half is whole.

Whatever happened: what others have stays as it was, what stood in the place is there whole or its successor is, the
exit code is one of the documented ones and no trace is shown; the same command again ends well, with the result that an
undisturbed one has. `make fuzz` runs all; a fifth runs with the suite.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.forked import run_forked
from tests.fuzz.faults import Points, run_with_fault
from tests.fuzz.subjects import Subject, write_plan, write_subjects
from vdit_cli.artifacts.video_file import write_video

ROOT = Path(__file__).resolve().parents[2]
SEEDS, SEEDS_OF_THE_SUITE = 100, 20
NAMES = (
    *("generate .mp4", "generate .gif", "generate .webp", "generate folder", "generate run"),
    *("analyze", "bench attention", "bench model", "prepare-data", "distill-mlcd", "train-shapes", "distill-kd"),
)
ALIKE = (".bundle.1a2b3c4d.js", "js/.cache.deadbeef/x", ".evdit-deadbeef.mp4", "step-000001-mine/model.safetensors")
"""What others keep where a command works: names that look like its own temporary ones."""
ODD_NAMES = (
    "12:30",
    "file:x",
    "a|b",
    "pipe:1",
    "%d",
    "two words",
    "漢" * 40,
    "'\"$(touch x)",
    "deep/er/x",
    "-n",
    "x" * 200,
)
CODES = {0, 1, 2, 3, 4, 6, 130}
OUTPUTS, RESUMES, INTERRUPTS = "outputs", "resumes", "interrupts"
posix = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


@dataclass(frozen=True)
class Case:
    """What a seed draws: a command, the state of its place, and a fault a share of the way through its points."""

    kind: str
    name: str
    place: str
    fault: str
    share: float
    is_process: bool
    odd: str


def drawn(seed: int) -> Case:
    """The case of a seed; a third of each kind are real processes."""
    draw = random.Random(seed)
    kind = (OUTPUTS, RESUMES, INTERRUPTS)[seed % 3]
    is_process = seed // 3 % 3 == 2
    name = draw.choice(NAMES)
    places = {
        OUTPUTS: ("new", "odd", "taken", "other", "link", "folder of others", "another command's", "here"),
        RESUMES: ("new", "finished", "damaged", "gone", "emptied", "overwriting"),
        INTERRUPTS: ("new", "overwriting", "link"),
    }
    faults = {
        (OUTPUTS, False): ("none", "none", "full"),
        (OUTPUTS, True): ("kill", "interrupt"),
        (RESUMES, False): ("none", "full", "interrupt"),
        (RESUMES, True): ("kill", "interrupt twice"),
        (INTERRUPTS, False): ("interrupt", "interrupt twice"),
        (INTERRUPTS, True): ("interrupt", "kill"),
    }
    return Case(
        kind,
        name,
        draw.choice(places[kind]),
        draw.choice(faults[kind, is_process]),
        draw.random(),
        is_process,
        draw.choice(ODD_NAMES),
    )


def told(seed: int) -> str:
    """A case in a word, for the names of the tests."""
    case = drawn(seed)
    words = (str(seed), case.name, case.place, case.fault, "process" if case.is_process else "")
    return "-".join(words).strip("-").replace(" ", "_")


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run of a command ends with, and how many points it passes."""

    result: Any
    points: int


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    """The commands, on one tiny model."""
    return write_subjects(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="session")
def references() -> dict[tuple[str, tuple[str, ...]], Reference]:
    """Results of undisturbed runs, made when they are first asked for."""
    return {}


class Trial:
    """One case in a folder of its own."""

    def __init__(self, case: Case, subject: Subject, folder: Path, evdit: Callable[..., tuple[int, str, str]]) -> None:
        self.case, self.subject, self.folder, self.evdit = case, subject, folder, evdit
        self.place = folder / f"out{subject.suffix}"
        self.flags: tuple[str, ...] = ()
        self.kept: dict[Path, bytes] = {}

    def words(self) -> list[str]:
        """The command line."""
        place = os.path.relpath(self.place)
        return self.subject.command(place if place[0] != "-" else f"./{place}", *self.flags)

    def reference(self, known: dict[tuple[str, tuple[str, ...]], Reference], more: tuple[str, ...]) -> Reference:
        """The undisturbed result of this command with `more` words."""
        key = (self.case.name, more)
        if key not in known:
            place = self.folder / f"reference{self.subject.suffix}"
            with Points().watching() as points:
                code, _, err = self.evdit(*self.subject.command(str(place), *more))
            assert code == 0, err
            known[key] = Reference(self.subject.told(place), len(points.passed))
            remove(place)
        return known[key]

    def keep(self, path: Path, content: bytes = b"mine") -> None:
        """A file that must stay as it is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(content)
        self.kept[path] = path.read_bytes()

    def finished(self, *more: str) -> None:
        """Let the place hold a finished result."""
        code, _, err = self.evdit(*self.subject.command(str(self.place), *more))
        assert code == 0, err

    def disturbed(self, points: int) -> tuple[int, str]:
        """Run the command once, with the fault; its exit code and what it said."""
        at = 1 + int(self.case.share * points)
        if not self.case.is_process:
            with Points(self.case.fault, at).watching():
                code, _, err = self.evdit(*self.words())
            return code, err
        (code,), _, err = astuple(run_forked(1, run_with_fault, self.case.fault, at, self.words()))
        return code, err

    def check(self, code: int, err: str) -> None:
        """What is true after any command."""
        assert code in CODES or (code == -signal.SIGKILL and self.case.fault == "kill"), (code, err)
        assert "Traceback" not in err and not re.search(r"error: [A-Z]\w*(Error|Exception):", err), err
        for path, content in self.kept.items():
            assert path.read_bytes() == content, path


def remove(place: Path) -> None:
    """Remove a result and its receipt."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    place.with_name(place.stem + ".json").unlink(missing_ok=True)


def prepared(trial: Trial) -> bool:
    """Bring the place into the state of the case; whether the command is to be refused in it."""
    case, subject = trial.case, trial.subject
    for name in ALIKE:
        trial.keep(trial.folder / name)
    refused = False
    if case.place == "odd":
        trial.place = trial.folder / f"{case.odd}{subject.suffix}"
    elif case.place == "here":
        trial.place = trial.folder / "here"
        trial.place.mkdir()
        os.chdir(trial.place)
        if subject.suffix:
            trial.place = trial.place / f"out{subject.suffix}"
    elif case.place == "link":
        (trial.folder / "far").mkdir()
        target = trial.folder / "far" / f"target{subject.suffix}"
        if subject.is_run:
            target.mkdir()
        trial.place.symlink_to(target)
    elif case.place == "folder of others":
        refused = subject.is_run
        place = trial.place if subject.is_run else trial.folder
        for name in ("thesis.tex", "README.md"):
            trial.keep(place / name)
    elif case.place == "another command's":
        run = trial.place if subject.is_run else trial.folder / "run"
        trial.keep(run / "run.json", (Path(trial.folder) / "other.json").read_bytes())
        refused = subject.is_run
        trial.flags = ("--overwrite",) if subject.overwrites else ()
    elif case.place in ("taken", "other", "overwriting"):
        trial.finished(*(() if case.place == "taken" else subject.other))
        if subject.is_run:
            keep_alike(trial)
        if case.place == "overwriting" and subject.overwrites:
            trial.flags = ("--overwrite",)
        else:
            refused = not (subject.is_run and case.place == "taken")
    elif case.place in ("finished", "damaged", "gone", "emptied") and subject.is_run:
        trial.finished()
        keep_alike(trial)
        if case.place != "finished":
            damage(trial)
    return refused


def keep_alike(trial: Trial) -> None:
    """Files of others inside a run."""
    for name in ALIKE:
        trial.keep(trial.place / name)


def damage(trial: Trial) -> None:
    """Harm one file that the run made and noted."""
    outputs = json.loads((trial.place / "run.json").read_text(encoding="utf-8"))["outputs"]
    files = sorted(name for output in outputs.values() for name in output["files"])
    file = trial.place / files[int(trial.case.share * len(files))]
    if trial.case.place == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-7] if trial.case.place == "damaged" else b"")


def whole(trial: Trial, code: int, old: Any, new: Any) -> None:
    """A result in the place is the old one or the new one, not half of either; after a success it is the new one."""
    if trial.subject.is_run:
        check_run(trial)
    elif os.path.lexists(trial.place) and trial.place.exists() and not is_torn(trial):
        assert trial.subject.told(trial.place) in (old, new)
    if code == 0:
        assert trial.subject.told(trial.place) == new


def is_torn(trial: Trial) -> bool:
    """Whether a kill struck between the two renames of a pair, which the receipt's digest tells; never otherwise."""
    if trial.case.fault != "kill":
        return False
    sidecar = trial.place.with_name(trial.place.stem + ".json")
    if not sidecar.exists() or trial.place.is_dir():
        return True
    digest = hashlib.sha256(trial.place.read_bytes()).hexdigest()
    return json.loads(sidecar.read_text(encoding="utf-8"))["output_sha256"] != digest


def check_run(trial: Trial) -> None:
    """Each output that run.json names is there with its digest, but for the one that a kill or damage struck."""
    manifest = trial.place / "run.json"
    if not manifest.exists() or trial.case.place in ("damaged", "gone", "emptied", "another command's"):
        return
    for output in json.loads(manifest.read_text(encoding="utf-8"))["outputs"].values():
        for name, digest in output["files"].items():
            file = trial.place / name
            replaced = trial.case.place == "overwriting" or trial.case.fault == "kill"
            assert replaced or hashlib.sha256(file.read_bytes()).hexdigest() == digest, name


@posix
@pytest.mark.parametrize(
    "seed",
    [
        pytest.param(seed, marks=[] if seed < SEEDS_OF_THE_SUITE else pytest.mark.fuzz, id=told(seed))
        for seed in range(SEEDS)
    ],
)
def test_nothing_is_lost(
    seed: int,
    evdit: Callable[..., tuple[int, str, str]],
    subjects: Mapping[str, Subject],
    references: dict[tuple[str, tuple[str, ...]], Reference],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The fault, what is true after it, and the same command again."""
    monkeypatch.chdir(tmp_path)
    case = drawn(seed)
    trial = Trial(case, subjects[case.name], tmp_path, evdit)
    new = trial.reference(references, ())
    old = trial.reference(references, trial.subject.other).result if case.place in ("other", "overwriting") else None
    if case.place == "another command's":
        write_other(trial, subjects["bench attention"])
    refused = prepared(trial)
    code, err = trial.disturbed(new.points)
    trial.check(code, err)
    if refused and case.fault not in ("kill", "interrupt", "interrupt twice", "full"):
        assert code == 2, err
    whole(trial, code, old, new.result)
    if refused:
        return
    if code == 0 and not trial.subject.is_run and not trial.flags:
        code, _, err = evdit(*trial.words())
        assert code == 2 and "exists" in err, "a finished file is not written over"
    else:
        code, _, err = evdit(*trial.words(), *again(trial, code))
        assert code == 0, err
    trial.check(code, err)
    assert trial.subject.told(trial.place) == new.result
    check_tidy(trial)


def again(trial: Trial, code: int) -> tuple[str, ...]:
    """`--overwrite` where a kill left one file of a pair."""
    torn = code == -signal.SIGKILL and not trial.subject.is_run and not trial.flags
    return ("--overwrite",) if torn and os.path.lexists(trial.place) else ()


def check_tidy(trial: Trial) -> None:
    """A finished run holds nothing unfinished, and its outputs are what run.json says."""
    if not trial.subject.is_run:
        return
    left = [path for path in trial.place.rglob(".evdit-*") if path not in trial.kept]
    notes = (trial.place / ".unfinished").exists() and trial.case.fault != "kill"
    assert left == [] and not notes
    manifest = json.loads((trial.place / "run.json").read_text(encoding="utf-8"))
    assert manifest["state"] == "done" and "replaces" not in manifest
    for output in manifest["outputs"].values():
        for name, digest in output["files"].items():
            assert hashlib.sha256((trial.place / name).read_bytes()).hexdigest() == digest, name


def write_other(trial: Trial, subject: Subject) -> None:
    """`other.json`: the run.json of a command that none of the subjects is."""
    code, _, err = trial.evdit(*subject.command("another"))
    assert code == 0, err
    manifest = json.loads(Path("another/run.json").read_text(encoding="utf-8"))
    Path("other.json").write_text(json.dumps({**manifest, "command": "search-masks"}), encoding="utf-8")


@posix
@pytest.mark.parametrize("at", range(1, 4))
@pytest.mark.parametrize("fault", ["full", "interrupt", "kill"])
def test_a_plan_is_sealed_or_as_it_was(fault: str, at: int, tmp_path: Path):
    """`masks seal` writes over its input: at every point it is the old file or the sealed one."""
    file = write_plan(tmp_path / "plan.json")
    before = file.read_bytes()
    command = [sys.executable, "-m", "tests.fuzz.faults", fault, str(at), "masks", "seal", str(file)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode in (0, 1, 130, -signal.SIGKILL) and "Traceback" not in done.stderr, done.stderr
    show = subprocess.run([sys.executable, "-m", "vdit_cli", "masks", "show", str(file)], capture_output=True)
    assert (file.read_bytes() == before) == (show.returncode != 0)
    assert done.returncode != 0 or show.returncode == 0


@posix
def test_reading_commands_change_nothing(evdit: Callable[..., tuple[int, str, str]], tmp_path: Path):
    """`score`, `masks show`, `models` and `doctor` leave what they read, and what lies beside it."""
    import numpy as np

    write_video("v.mp4", np.zeros((4, 32, 32, 3), np.uint8), 8, {"prompt": "a small red circle"})
    write_plan(tmp_path / "plan.json")
    for name in ALIKE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for words in (("score", "v.mp4"), ("score", "."), ("masks", "show", "plan.json"), ("models",), ("doctor",)):
        code, _, err = evdit(*words)
        assert code in CODES and "Traceback" not in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_every_kind_has_real_processes():
    """Ten of each at least, both killed and interrupted, and every command is among the cases."""
    cases = [drawn(seed) for seed in range(SEEDS)]
    for kind in (OUTPUTS, RESUMES, INTERRUPTS):
        faults = [case.fault for case in cases if case.kind == kind and case.is_process]
        assert len(faults) >= 10 and "kill" in faults and any("interrupt" in fault for fault in faults)
    assert {case.name for case in cases} == set(NAMES)
