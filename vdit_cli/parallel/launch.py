"""`--gpus N`: this command line once more, on N ranks, under torchrun; the ranks' first error becomes this process's.

Ranks stand in sessions of their own, so Ctrl-C reaches only this process, which passes it on to each of them once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

import psutil
import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from vdit_cli.errors import ENVIRONMENT, FAILED, EvditError, Interrupted
from vdit_cli.parallel.environment import LAUNCHER, is_rank, left_error, number_of

PATIENT = {"join_timeout": 1800, "read_timeout": 600, "keep_alive_interval": 5, "keep_alive_max_attempt": 120}
"""How long torchrun's own process waits for itself on a busy machine; by default three late heartbeats end all."""
MOST_INTERRUPTS = 2
"""Ctrl-C is passed on this often (save and stop, then quit at once); after that this process quits itself."""


def launched(gpus: int | None, device: str) -> bool:
    """Run this process's command line on `gpus` ranks and wait for them; False where this process does the work itself.

    That is so for no or one GPU, and in a process that torchrun, `accelerate launch` or this function started. With
    `device` "cpu" the ranks share the CPU. Raises EvditError: 2 for a device that ranks can't share, and for ranks that
    are others in number; 3 for more GPUs than there are; and the error and exit code of the first rank that failed.
    """
    if gpus is not None and is_rank() and gpus != (count := number_of("WORLD_SIZE")):
        raise EvditError(
            f"--gpus {gpus} starts {gpus} ranks, and this is one of {count} that were started already",
            where=f"--gpus {gpus}",
            next_steps=[f"no --gpus under torchrun --nproc-per-node {gpus}", f"--gpus {gpus} without torchrun"],
        )
    if gpus is None or gpus == 1 or is_rank():
        return False
    check_devices(gpus, device)
    launch(gpus, ["-m", "vdit_cli", *sys.argv[1:]])
    return True


def check_devices(gpus: int, device: str) -> None:
    """Raise EvditError unless each of `gpus` ranks gets a device of its own, or all of them the CPU."""
    if device == "cpu":
        return
    if device not in ("auto", "cuda"):
        raise EvditError(
            f"--gpus {gpus} can't share the device {device}: it must be cuda, cpu or auto",
            where=f"--device {device}",
            next_steps=["--device cuda", "--device cpu"],
        )
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if here < gpus:
        raise EvditError(
            f"--gpus {gpus} needs {gpus} CUDA GPUs: this machine has {here}",
            where=f"--gpus {gpus}",
            next_steps=[*([f"--gpus {here}"] if here else []), f"--gpus {gpus} --device cpu"],
            exit_code=ENVIRONMENT,
        )


def launch(count: int, program: Sequence[str]) -> None:
    """Run `program` (a script, or "-m" and a module, then arguments) on `count` ranks of this machine.

    Raises EvditError with the exit code of the rank that failed first; one killed by signal n counts as 128 + n.
    """
    with tempfile.TemporaryDirectory(prefix="evdit-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            rdzv_configs=dict(PATIENT),
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        )
        threads = str(max(1, (os.cpu_count() or 1) // count))
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), LAUNCHER: str(os.getpid())}
        with _environment(environment), _quiet(), _interrupts_passed_on():
            try:
                elastic_launch(config, sys.executable)("-u", *program)
            except ChildFailedError as failed:
                raise first_error(failed.failures) from None
            except SignalException as stopped:
                name = signal.Signals(stopped.sigval).name
                raise EvditError(f"the ranks were stopped by {name}", exit_code=128 + stopped.sigval) from None


def first_error(failures: Mapping[int, ProcessFailure]) -> EvditError:
    """The error that ended the ranks: of one killed from outside, else the one told first, else a bare exit code."""
    killed = {
        number: -failure.exitcode
        for number, failure in failures.items()
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM
    }
    if killed:
        number, code = min(killed.items())
        if code == signal.SIGINT:
            return Interrupted("interrupted", next_steps=["the same command again"])
        return EvditError(
            f"rank {number} was killed by {signal.Signals(code).name}, and the others were stopped",
            next_steps=["the same command again goes on from the last checkpoint", "more memory, or fewer ranks"],
            exit_code=128 + code,
        )
    told = [left_error(failure.error_file_data) for failure in failures.values()]
    known = sorted((each for each in told if each is not None), key=lambda each: each[0])
    if known:
        return known[0][1]
    number, failure = min(failures.items(), key=lambda item: item[1].timestamp)
    code = failure.exitcode if failure.exitcode > 0 else FAILED
    return EvditError(f"rank {number} ended with exit code {failure.exitcode}", exit_code=code)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchrun's own lines about what the ranks' error says in the house's form."""
    logger = logging.getLogger("torch.distributed.elastic")
    loggers = [each for name, each in logging.root.manager.loggerDict.items() if name.startswith(logger.name)]
    levels = [(each, each.level) for each in [logger, *loggers] if isinstance(each, logging.Logger)]
    for each, _ in levels:
        each.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for each, level in levels:
            each.setLevel(level)


@contextmanager
def _interrupts_passed_on() -> Iterator[None]:
    """Pass each Ctrl-C on to the ranks, which are this process's children, once; also restore torchrun's signals."""
    passed = 0

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal passed
        passed += 1
        if passed > MOST_INTERRUPTS:
            raise KeyboardInterrupt
        for child in psutil.Process().children():
            child.send_signal(signal.SIGINT)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    before = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        for number, minded in before.items():
            signal.signal(number, minded)
