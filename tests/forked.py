"""Processes and ranks that are forked from one which has imported everything, so that each starts at once.

For what they do. How they start and how Python ends is tested where a shell, torchrun or `--gpus` starts them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed import TCPStore

IMPORTED = [
    "vdit_cli.__main__",
    "vdit_cli.sampling.generate",
    "vdit_cli.distillation.distill_mlcd",
    "vdit_cli.distillation.distill_kd",
    "vdit_cli.backbones.open_sora_plan.backbone",
]
PRINTED = ("out", "err")
SECONDS = 600.0


@dataclass(frozen=True)
class Ended:
    """Exit codes by rank, -n for one killed by signal n, and what all ranks printed."""

    codes: list[int | None]
    out: str
    err: str


def run_forked(count: int, program: Callable[..., Any], *given: Any) -> Ended:
    """The end of `program(*given)` on `count` ranks, or in a process alone, in this folder; each must end by itself.

    A rank has one thread, a process alone as many as this one, so that its numbers are the same to the bit.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    threads = torch.get_num_threads() if count == 1 else 1
    places = [place_of(rank, count, store.port) for rank in range(count)]
    with TemporaryDirectory(prefix="evdit-forked-") as told:
        beside = (told, os.getcwd(), threads, program, given)
        ranks = [context.Process(target=run_rank, args=(place, *beside)) for place in places]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(SECONDS)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        out, err = (Path(told, name).read_text(encoding="utf-8") for name in PRINTED)
    assert None not in codes, f"ranks that still ran have no code: {codes}\n{err}"
    return Ended(codes, out, err)


def place_of(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun sets in the environment of a rank; nothing for a process that is alone."""
    if count == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    known = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return known | {name: str(number) for name, number in numbers.items()}


def run_rank(
    place: dict[str, str],
    told: str,
    folder: str,
    threads: int,
    program: Callable[..., Any],
    given: tuple[Any, ...],
) -> None:
    """In a rank's process: its place, folder and threads, and files that all ranks append what they print to."""
    os.chdir(folder)
    os.environ.update(place)
    torch.set_num_threads(threads)
    for stream, name in enumerate(PRINTED, 1):
        os.dup2(os.open(Path(told, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
    raise SystemExit(program(*given))
