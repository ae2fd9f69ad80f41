"""Memory that a generation will need, told before any weight is loaded, and the flags that would make it fit.

Needed = weights (file headers) + the tensors of one run on no data, stage by stage, as offload lets parts leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import psutil
import torch

from vdit_cli.backbones.base import Backbone
from vdit_cli.errors import OUT_OF_MEMORY, EvditError
from vdit_cli.sampling.sample import SampleSpec

WORK_SPACE = 1.25
"""Measured peak over the dry run's tensors, at most: convolutions reorder and pad inside (2 CPU cores, torch 2.13)."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Placing:
    """How a generation uses memory: what offload keeps on the device, tiling of the VAE, videos denoised at once."""

    offload: str
    vae_tiling: bool
    batch: int

    def flags(self, than: Placing) -> str:
        """The flags that lead here from the placing `than`."""
        changed = []
        if self.offload != than.offload:
            changed.append(f"--offload {self.offload}")
        if self.vae_tiling and not than.vae_tiling:
            changed.append("--vae-tiling")
        if self.batch != than.batch:
            changed.append(f"--set generate.batch={self.batch}")
        return " ".join(changed)


def needed(
    backbone: Backbone, spec: SampleSpec, placing: Placing, working_bytes: Callable[..., int] | None = None
) -> dict[str, int]:
    """Bytes that each stage ("text", "denoise", "decode") will have on the device; no weight is loaded for it.

    `working_bytes` is the backbone's own, or one that remembers its answers.
    """
    working_bytes = working_bytes or backbone.working_bytes
    size = (spec.video_frames, spec.height, spec.width, placing.vae_tiling)
    network_batch = placing.batch * (2 if spec.guided else 1)
    transformer, vae = backbone.part_bytes("transformer"), backbone.part_bytes("vae")
    two_blocks = 2 * transformer // backbone.architecture.layers
    resident = {"none": transformer, "model": transformer, "block": two_blocks}[placing.offload]
    beside = 0 if placing.offload != "none" else 1
    # Decoded in the model's numbers, turned to bytes through float32, one video at a time.
    pixels = 3 * spec.video_frames * spec.height * spec.width * (backbone.dtype.itemsize + 4 + 1)
    working = {
        "denoise": working_bytes("transformer", network_batch, *size),
        "decode": working_bytes("vae", 1, *size) + pixels,
    }
    return {
        "text": backbone.part_bytes("text"),
        "denoise": resident + beside * vae + int(WORK_SPACE * working["denoise"]),
        "decode": vae + beside * transformer + int(WORK_SPACE * working["decode"]),
    }


def free_bytes(device: torch.device) -> int:
    """Bytes that a program could still take on the device; on the CPU also within its container's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):
        # "max" (no limit) is no number; without cgroups there is no file.
        limit = int((CGROUP / "memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int((CGROUP / "memory.current").read_text(encoding="ascii")))
    return free


def check_memory(backbone: Backbone, spec: SampleSpec, placing: Placing) -> dict[str, int]:
    """What `needed` says, where it fits. Raises EvditError (exit 4), with the flags that would fit, where it can't."""
    need = needed(backbone, spec, placing)
    free = free_bytes(backbone.device)
    stage = max(need, key=lambda name: need[name])
    if need[stage] <= free:
        return need
    ways = fitting(backbone, spec, placing, free)
    raise EvditError(
        f"{spec.video_frames} frames of {spec.height} x {spec.width} need about {gib(need[stage])} to {stage}, "
        f"and {gib(free)} are free on {backbone.device}",
        where=f"--offload {placing.offload}" + (" --vae-tiling" if placing.vae_tiling else ""),
        next_steps=ways or [f"a machine with {gib(need[stage])} of memory"],
        exit_code=OUT_OF_MEMORY,
    )


def fitting(backbone: Backbone, spec: SampleSpec, placing: Placing, free: int) -> list[str]:
    """Flags that would fit into `free` bytes, mildest first, three at most; else with a smaller video."""
    remembered = cache(backbone.working_bytes)
    offloads = ("none", "model", "block")
    milder = product(dict.fromkeys((placing.batch, 1)), offloads[offloads.index(placing.offload) :], (False, True))
    others = [Placing(offload, tiling or placing.vae_tiling, batch) for batch, offload, tiling in milder]
    fits = [other for other in dict.fromkeys(others) if max(needed(backbone, spec, other, remembered).values()) <= free]
    if fits:
        return [way.flags(placing) for way in fits[:3]]
    sparsest = Placing("block", True, 1)
    ways = []
    for smaller, flags in smaller_videos(spec):
        if max(needed(backbone, smaller, sparsest, remembered).values()) <= free:
            ways.append(f"{flags} {sparsest.flags(placing)}".strip())
    return ways[:3]


def smaller_videos(spec: SampleSpec) -> Iterator[tuple[SampleSpec, str]]:
    """Halved sizes, then fewer frames, each with its flags; sizes stay multiples of 16, frames 4k+1."""
    height, width = spec.height, spec.width
    while min(height, width) >= 64:
        height, width = height // 32 * 16, width // 32 * 16
        yield replace(spec, height=height, width=width), f"--height {height} --width {width}"
    frames = spec.video_frames
    while frames > 5:
        frames = (frames - 1) // 8 * 4 + 1
        yield replace(spec, video_frames=frames), f"--frames {frames}"


def gib(size: int) -> str:
    """Bytes as "11.5 GiB", or "40 MiB" where they are few."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 // 10 else f"{max(1, round(size / 2**20))} MiB"
