"""The machine behind a number: GPU, clocks, driver, versions, threads."""

from __future__ import annotations

import csv
import datetime
import io
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vdit_cli.artifacts.receipt import this_machine, versions

ASKED = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)
"""What nvidia-smi is asked for; clocks in MHz, watts, degrees Celsius."""
MORE_PACKAGES = ("flash-attn-4", "nvidia-cutlass-dsl", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What `device` is: its kind in a few words, the machine around it, and on CUDA the clocks as they are now."""
    name = (torch.cuda.get_device_name(device),) if device.type == "cuda" else ()
    around = this_machine(name)
    facts: dict[str, Any] = {
        "kind": name[0] if name else f"{around.cores}-core {platform.machine().replace('_', '-')} CPU",
        "system": around.system,
        "cores": around.cores,
        "memory_bytes": around.memory_bytes,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        facts["gpu"] = gpu_facts(device)
    return facts


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Name, compute capability, memory and what nvidia-smi says; a machine without nvidia-smi says so."""
    seen = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "name": seen.name,
        "compute": f"{seen.major}.{seen.minor}",
        "memory_bytes": seen.total_memory,
        "multiprocessors": seen.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    program = shutil.which("nvidia-smi")
    if program is None:
        return {**facts, "clocks": "unknown: there is no nvidia-smi"}
    command = [program, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader,nounits", "-i", gpu_name_for(seen)]
    try:
        told = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return {**facts, "clocks": f"unknown: nvidia-smi does not answer ({error})"}
    return {**facts, **read_gpu_line(told)}


def gpu_name_for(seen: Any) -> str:
    """The GPU for nvidia-smi, which does not know which ones this process may see: by its UUID."""
    uuid = str(seen.uuid)
    return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"


def read_gpu_line(text: str) -> dict[str, str]:
    """The values of ASKED from a line of nvidia-smi."""
    cells = next(csv.reader(io.StringIO(text.strip()), skipinitialspace=True), [])
    return dict(zip((name.replace(".", "_") for name in ASKED), (cell.strip() for cell in cells), strict=False))


def package_versions() -> dict[str, str]:
    """The versions that decide a number: those of every receipt, and of the kernels' own packages if they are here."""
    found = versions()
    for package in MORE_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def today() -> str:
    """The date, as 2026-11-24."""
    return datetime.date.today().isoformat()


def machine_line(facts: dict[str, Any], packages: dict[str, str]) -> str:
    """Machine and versions in one line, for the head of a table."""
    parts = [str(facts["kind"])]
    gpu = facts.get("gpu")
    if gpu:
        if "clocks_sm" in gpu:
            parts.append(f"SM {gpu['clocks_sm']} of {gpu['clocks_max_sm']} MHz, memory {gpu['clocks_mem']} MHz")
            parts.append(f"{gpu['power_limit']} W, {gpu['temperature_gpu']} C, driver {gpu['driver_version']}")
        else:
            parts.append(f"clocks {gpu['clocks']}")
        parts.append(f"CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}")
    else:
        parts.append(f"{facts['threads']} thread{'s' if facts['threads'] > 1 else ''}")
    parts += [f"{name} {packages[name]}" for name in ("torch", "triton", "flash-attn-4", "evdit") if name in packages]
    return "; ".join(parts)
