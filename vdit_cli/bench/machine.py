"""What this machine has for the work, and what is missing with its fix: the findings of `evdit doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from vdit_cli import __version__
from vdit_cli.artifacts import mp4
from vdit_cli.artifacts.places import user_data_path
from vdit_cli.attention.bind import KERNELS, Case, kernel_module
from vdit_cli.backbones.devices import pick_device, pick_dtype
from vdit_cli.backbones.hub import cache_folder
from vdit_cli.backbones.registry import ENTRIES
from vdit_cli.backbones.sources import GIGABYTE, BackboneEntry, check_whole, repair, size_text
from vdit_cli.errors import EvditError
from vdit_cli.tiles.grid import VideoGrid

LEAST_PYTHON = (3, 11)
LEAST_FREE_DISK = 2 * GIGABYTE
LEAST_FREE_MEMORY = 2 * GIGABYTE


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, and if it is a problem, how to mend it.

    `is_essential` says that nothing can be generated until it is mended.
    """

    name: str
    found: str
    problem: str = ""
    fix: str = ""
    is_essential: bool = False


def examine() -> list[Finding]:
    """Look at everything; never raises for what it finds, a check that fails is a finding itself."""
    findings = [python(), torch_build(), *gpus(), *embedded_models(), video_encoder(), *kernels(), memory()]
    findings += [disk("disk of runs/", Path("runs")), disk("disk of fetched models", cache_folder())]
    findings += [writable("runs/", Path("runs"), is_essential=True), writable("hub cache", cache_folder())]
    findings += [writable("models", user_data_path() / "models"), *packages()]
    return findings


def python() -> Finding:
    """The Python that runs."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()} ({sys.executable})"
    if sys.version_info[:2] < LEAST_PYTHON:
        return Finding("python", found, "evdit needs Python 3.11 or newer", "install Python 3.11", is_essential=True)
    return Finding("python", found)


def torch_build() -> Finding:
    """torch and whether it was built for a GPU that is here."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    found = f"{torch.__version__}, {cuda}, {torch.get_num_threads()} CPU threads"
    if torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return Finding("torch", found)
    if torch.version.cuda is None:
        return Finding(
            "torch",
            found,
            "this machine has an NVIDIA driver, and this torch can't use it",
            "pip install --force-reinstall torch  (the build with CUDA)",
        )
    return Finding(
        "torch", found, "torch was built with CUDA, and no GPU answers", "nvidia-smi  (driver, visible GPUs)"
    )


def gpus() -> list[Finding]:
    """Each CUDA GPU with its memory; or that there is none."""
    if not torch.cuda.is_available():
        return [Finding("gpu", "none: everything runs on the CPU")]
    findings = []
    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = f"{seen.name}, compute {seen.major}.{seen.minor}, {size_text(free)} of {size_text(total)} free"
        old = seen.major < 8
        findings.append(
            Finding(
                f"cuda:{index}",
                found,
                "it has no fast bfloat16, which is the default on a GPU" if old else "",
                "--dtype float16" if old else "",
            )
        )
    return findings


def embedded_models() -> list[Finding]:
    """The models of the package, each file compared with its digest: a clone can be cut off, a file system can rot."""
    return [embedded_model(entry) for entry in ENTRIES if entry.is_embedded]


def embedded_model(entry: BackboneEntry) -> Finding:
    """One model of the package."""
    found = str(entry.weights_folder)
    fix = repair(entry)
    missing = [each.path for each in entry.missing_files()]
    if missing:
        return Finding(f"model {entry.name}", found, f"missing: {', '.join(missing)}", fix, is_essential=True)
    try:
        check_whole(entry)
    except EvditError as error:
        return Finding(f"model {entry.name}", found, error.what, fix, is_essential=True)
    return Finding(f"model {entry.name}", f"{found}, {len(entry.files)} files as they were made")


def video_encoder() -> Finding:
    """PyAV, which writes and reads mp4 files, and whether it was built with the encoder."""
    try:
        mp4.check_encoder()
    except EvditError as error:
        return Finding("PyAV", "none, or not whole", error.what, " or ".join(error.next_steps), is_essential=True)
    av = mp4.pyav()
    return Finding("PyAV", f"{av.__version__} with ffmpeg {av.ffmpeg_version_info} and {mp4.ENCODER}")


def kernels() -> list[Finding]:
    """Each attention kernel in the order of preference: whether it takes the attention of the default model here.

    A kernel that can't is no problem as long as another one can.
    """
    entry = ENTRIES[0]
    device = pick_device()
    grid = VideoGrid((entry.video_frames - 1) // 4 + 1, entry.height // 16, entry.width // 16)
    case = Case(grid, heads=6, head_dim=48, batch=1, dtype=pick_dtype("auto", device), device=device)
    reasons = {}
    for name in KERNELS:
        try:
            reasons[name] = kernel_module(name).supports(case)
        except ImportError as error:
            reasons[name] = f"it can't be imported: {error}"
    findings = [
        Finding(f"kernel {name}", f"binds on {device}" if reason is None else f"does not bind: {reason}")
        for name, reason in reasons.items()
    ]
    if all(reason is not None for reason in reasons.values()):
        fix = "pip install --force-reinstall torch"
        findings.append(Finding("kernels", "none", "no attention kernel binds", fix, is_essential=True))
    return findings


def memory() -> Finding:
    """Memory of the machine."""
    seen = psutil.virtual_memory()
    found = f"{size_text(seen.available)} of {size_text(seen.total)} free, {os.cpu_count()} CPUs"
    if seen.available < LEAST_FREE_MEMORY:
        return Finding(
            "memory", found, f"less than {size_text(LEAST_FREE_MEMORY)} is free", "close programs, or --offload model"
        )
    return Finding("memory", found)


def disk(name: str, folder: Path) -> Finding:
    """Free space of the disk that holds, or will hold, `folder`."""
    there = existing(folder)
    free = shutil.disk_usage(there).free
    found = f"{size_text(free)} free at {there}"
    if free < LEAST_FREE_DISK:
        return Finding(name, found, f"less than {size_text(LEAST_FREE_DISK)} is free", "free some space")
    return Finding(name, found)


def writable(name: str, folder: Path, is_essential: bool = False) -> Finding:
    """Whether files can be made in `folder`, or in the folder in which it would be made."""
    there = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=there):
            return Finding(name, f"can be written ({folder.absolute()})")
    except OSError as error:
        return Finding(
            name,
            str(folder.absolute()),
            f"it can't be written: {error.strerror or error}",
            f"change the rights of {there}, or run in another folder",
            is_essential,
        )


def packages() -> list[Finding]:
    """The version of evdit and of each package that it needs."""
    findings = [Finding("evdit", __version__)]
    for name in needed_packages():
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "none", f"{name} is not installed", f"pip install {name}", is_essential=True))
    return findings


def needed_packages() -> list[str]:
    """Names of the packages that evdit needs on this machine, but for torch; from its own metadata where installed."""
    try:
        lines = importlib.metadata.requires("evdit") or []
    except importlib.metadata.PackageNotFoundError:
        return list(CORE_PACKAGES)
    core = [
        line for line in lines if "extra ==" not in line and ("sys_platform" not in line or sys.platform == "linux")
    ]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in core]
    return [name for name in names if name != "torch"]


CORE_PACKAGES = ("diffusers", "transformers", "safetensors", "sentencepiece", "av", "typer", "rich")
"""Named where evdit runs uninstalled, and so has no metadata."""


def existing(folder: Path) -> Path:
    """`folder`, or the nearest folder above it that exists."""
    whole = folder.absolute()
    return next(place for place in (whole, *whole.parents) if place.is_dir())
