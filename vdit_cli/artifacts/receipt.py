"""The receipt of a run or a video: what was asked, what really ran, how long it took, on which machine. No torch."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from vdit_cli import __version__
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.reader import read

SCHEMA = "evdit.receipt/1"
ONCE = ("load", "text")
"""Phases whose seconds are those of the whole command so far."""
PACKAGES = ("torch", "triton", "diffusers", "transformers", "safetensors", "numpy")


@dataclass(frozen=True)
class Machine:
    """Where something ran; `memory_bytes` is the machine's own, `accelerators` are names, told by who asked torch."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ran:
    """What the denoising loop really did.

    `layers` has one `Attend.receipt()` a layer (mask, kernel, refused kernels with reasons). The first `dense_steps`
    ran with full attention by `dense_kernel` instead; where all did, `layers` tells of them. The shares are of tiles,
    averaged over layers and steps; `fallbacks` are the lines that were said about kernels that could not be had,
    `warnings` those about a prompt, a length or a sampler that the model was not made for. `masks` are those of `plan`
    (a digest) in a word, "none" being full attention; `loras` are the adapters added in `weights`, each with path,
    scale and digest.
    """

    model: str
    weights: str | None = None
    device: str = "cpu"
    dtype: str = "float32"
    scheduler: str = ""
    timesteps: tuple[float, ...] = ()
    guidance: float | None = None
    layers: tuple[Mapping[str, Any], ...] = ()
    dense_steps: int = 0
    dense_kernel: str | None = None
    kept_share: float = 1.0
    skipped_share: float = 0.0
    fallbacks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    loras: tuple[Mapping[str, Any], ...] = ()
    masks: str = "none"
    plan: str | None = None


@dataclass(frozen=True)
class Receipt:
    """`asked`: the resolved options with the prompt and seed; `seconds`: load, text, denoise, decode, write.

    `output` is the name of the video beside it, `output_sha256` its digest: another video under that name is not this
    receipt's.
    """

    asked: Mapping[str, Any]
    ran: Ran
    seconds: Mapping[str, float]
    peak_memory_bytes: int | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    machine: Machine = field(default_factory=lambda: this_machine())
    output: str | None = None
    output_sha256: str | None = None

    def joined(self, later: Receipt) -> Receipt:
        """One receipt of two videos of a run: what is done once a command counts once, what is done a video adds up."""
        seconds = {
            phase: max(value, later.seconds.get(phase, 0.0))
            if phase in ONCE
            else round(value + later.seconds.get(phase, 0.0), 4)
            for phase, value in self.seconds.items()
        }
        peaks = [peak for peak in (self.peak_memory_bytes, later.peak_memory_bytes) if peak is not None]
        return replace(later, seconds=seconds, peak_memory_bytes=max(peaks, default=None))

    def content(self) -> dict[str, Any]:
        """The receipt as JSON values, its schema first."""
        return {"schema": SCHEMA, **asdict(self)}

    def write(self, path: Path | str) -> None:
        """Write the receipt as JSON, whole or not at all. Raises EvditError for a full disk or an unwritable place."""
        write_json(path, self.content())

    @staticmethod
    def read(path: Path | str) -> Receipt:
        """The receipt of a JSON file. Raises EvditError for another file."""
        return read(Receipt, Path(path), "receipt", SCHEMA)


def versions() -> dict[str, str]:
    """The versions of evdit, Python and the packages that decide numbers, as far as they are installed."""
    found = {"evdit": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def this_machine(accelerators: tuple[str, ...] = ()) -> Machine:
    """The machine at hand; memory in bytes."""
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=platform.processor() or platform.machine(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        accelerators=accelerators,
    )
