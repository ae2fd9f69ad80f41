"""Commands that need a GPU each, several at once on the GPUs of one machine, in any order that their needs allow.

Each job keeps to its own share of the machine's cores: as many threads and processes as a program begins on all of them
are too many for a machine where a dozen programs do so.

What was done is noted in the folder of logs, so that the same call goes on where it was stopped; the commands of evdit
go on by themselves where they were killed.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vdit_cli.errors import FAILED, EvditError

POLL_SECONDS = 0.2


class Step(NamedTuple):
    """A command by its words, and the file that takes what it prints, where that is kept."""

    words: Sequence[str]
    to: Path | None = None


@dataclass(frozen=True)
class Job:
    """Steps one after the other, once all jobs named in `after` are done, in a `lane` of a GPU."""

    name: str
    steps: tuple[Step, ...]
    lane: str
    after: tuple[str, ...] = ()


@dataclass
class Running:
    """A job at work on a GPU, in one of the places of its lane there, counted from 0."""

    job: Job
    gpu: str
    place: int
    process: subprocess.Popen
    since: float


def gpus_here() -> list[str]:
    """The GPUs of this machine by the names that CUDA_VISIBLE_DEVICES takes; one name without a GPU."""
    import torch

    return [str(number) for number in range(torch.cuda.device_count())] or [""]


def run_side_by_side(
    jobs: Sequence[Job], gpus: Sequence[str], lanes: Mapping[str, int], logs: Path, say: Callable[[str], None]
) -> None:
    """Run all jobs, at most `lanes[lane]` of a lane on each GPU at once; earlier ones first where several could begin.

    Each job's output goes to `logs`/NAME.log, and NAME.done is there once it is done. A job that fails stops none but
    those that come after it. Raises EvditError (1) in the end where one failed, and (2) for a need that is no job.
    """
    check(jobs)
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in jobs if not marker(logs, job).exists()]
    done = {job.name for job in jobs} - {job.name for job in waiting}
    failed: list[str] = []
    running: list[Running] = []
    start = time.monotonic()
    with ExitStack() as stack:
        stack.callback(lambda: [each.process.terminate() for each in running])
        while waiting or running:
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                is_done = each.process.returncode == 0
                (done.add if is_done else failed.append)(each.job.name)
                now = time.monotonic()
                how = "done" if is_done else f"failed, see {logs / log_name(each.job)}"
                say(f"{now - start:6.0f} s  {each.job.name}: {how}, {now - each.since:.0f} s")
            for job in [job for job in waiting if done.issuperset(job.after)]:
                gpu = min(gpus, key=lambda gpu, lane=job.lane: (taken(running, gpu, lane), taken(running, gpu)))
                if taken(running, gpu, job.lane) >= lanes[job.lane]:
                    continue
                waiting.remove(job)
                place = free_place(running, gpu, job.lane)
                cores = share(share(cores_here(), gpus.index(gpu), len(gpus)), place, lanes[job.lane])
                running.append(Running(job, gpu, place, begun(job, gpu, cores, logs), time.monotonic()))
            if not running:
                break
            time.sleep(POLL_SECONDS)
    if failed or waiting:
        left = ", ".join(job.name for job in waiting)
        raise EvditError(
            f"{', '.join(failed)} failed" + (f"; not begun: {left}" if left else ""),
            where=str(logs),
            next_steps=["the same command again, which goes on"],
            exit_code=FAILED,
        )


def check(jobs: Sequence[Job]) -> None:
    """Raise EvditError (2) for two jobs of one name, and for a need that is no job before it."""
    known: set[str] = set()
    for job in jobs:
        if job.name in known or not known.issuperset(job.after):
            raise EvditError(f"the job {job.name} is there twice, or needs one that does not stand before it")
        known.add(job.name)


def log_name(job: Job) -> str:
    """The name of a job's log."""
    return job.name.replace("/", "_") + ".log"


def marker(logs: Path, job: Job) -> Path:
    """The file that is there once a job is done."""
    return (logs / log_name(job)).with_suffix(".done")


def taken(running: Sequence[Running], gpu: str, lane: str | None = None) -> int:
    """How many jobs are at work on a GPU, of a lane or of all."""
    return sum(each.gpu == gpu and lane in (None, each.job.lane) for each in running)


def free_place(running: Sequence[Running], gpu: str, lane: str) -> int:
    """The first place of a lane on a GPU in which no job is at work."""
    taken_places = {each.place for each in running if (each.gpu, each.job.lane) == (gpu, lane)}
    return next(place for place in itertools.count() if place not in taken_places)


def cores_here() -> list[int]:
    """The cores that this process may run on; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def share(cores: Sequence[int], place: int, of: int) -> Sequence[int]:
    """The part of the cores for one of several places; of fewer cores than places one, which others have too."""
    if len(cores) < of:
        return cores[place % len(cores) :][:1] if cores else cores
    return cores[place * len(cores) // of : (place + 1) * len(cores) // of]


def begun(job: Job, gpu: str, cores: Sequence[int], logs: Path) -> subprocess.Popen:
    """The process that runs a job's steps on these cores."""
    words = [sys.executable, __file__, str(logs), job.name, ",".join(map(str, cores))]
    for step in job.steps:
        words += ["--", str(step.to or ""), *step.words]
    with (logs / log_name(job)).open("ab") as log:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment)


def run_steps(logs: Path, name: str, steps: Sequence[Step]) -> int:
    """Run steps up to the first that fails, whose exit code is returned; note that all are done."""
    for step in steps:
        sys.stdout.write(f"$ {shlex.join(step.words)}{f' > {shlex.quote(str(step.to))}' if step.to else ''}\n")
        sys.stdout.flush()
        if step.to is None:
            code = subprocess.run(step.words).returncode
        else:
            beside = step.to.with_name(f".{step.to.name}")
            beside.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                code = subprocess.run(step.words, stdout=file).returncode
            if code == 0:
                beside.replace(step.to)
        if code:
            return code
    marker(logs, Job(name, (), "")).touch()
    return 0


def main(words: Sequence[str]) -> int:
    """The process of one job: LOGS NAME CORES, then a step -- FILE WORDS each; else say what this is.

    CORES are numbers with commas between them, or none for all of them; FILE may be empty.
    """
    logs, name, cores, *rest = words if len(words) > 3 and words[3] == "--" else ("", "", "")
    steps: list[list[str]] = []
    for word in rest:
        if word == "--":
            steps.append([])
        else:
            steps[-1].append(word)
    if not steps:
        sys.stdout.write(f"{__doc__}\ndocs/make_students.py and its like use it.\n")
        return 0
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    return run_steps(Path(logs), name, [Step(step[1:], Path(step[0]) if step[0] else None) for step in steps])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
