"""What is told about a video: the receipt beside it (out.json of out.mp4) and the metadata inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vdit_cli.artifacts.receipt import Ran, Receipt, this_machine, versions
from vdit_cli.backbones.base import AddsAdapters, Backbone
from vdit_cli.sampling.dense_steps import Switched, kept_share
from vdit_cli.sampling.outputs import Clip
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.tiles.mask import mean_kept_share
from vdit_cli.tiles.plan import MaskPlan

PHASES = ("load", "text", "denoise", "decode", "write")


def loras_of(backbone: Backbone) -> list[dict[str, Any]]:
    """Path, scale and digest of each adapter that is added to the backbone's weights."""
    return [lora.content() for lora in backbone.loras] if isinstance(backbone, AddsAdapters) else []


def metadata_of(clip: Clip, spec: SampleSpec, model: str, plan: MaskPlan, dense_steps: int) -> dict[str, str]:
    """What travels inside the video file."""
    return {
        "prompt": clip.prompt,
        "seed": str(clip.seed),
        "model": model,
        "masks": plan.masks_text(),
        **({"dense_steps": str(dense_steps)} if dense_steps else {}),
        "steps": str(spec.steps),
        "guidance": str(spec.guidance),
        "scheduler": spec.scheduler,
        **({} if spec.timesteps is None else {"timesteps": spec.timesteps}),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }


def receipt_of(
    *,
    clip: Clip,
    values: Mapping[str, Any],
    backbone: Backbone,
    scheduler: str,
    timesteps: Sequence[float],
    guidance: float,
    plan: MaskPlan,
    switched: Switched,
    fallbacks: Sequence[str],
    warnings: Sequence[str],
    seconds: Mapping[str, float],
    peak_bytes: int,
    output_sha256: str,
) -> Receipt:
    """The receipt of one video; `values` are the resolved options, `switched` is what denoised."""
    attends = switched.masked or switched.dense
    in_plan = mean_kept_share([attend.mask for attend in attends])
    kept = kept_share(in_plan, switched.dense_steps, switched.steps)
    gpus = (torch.cuda.get_device_name(backbone.device),) if backbone.device.type == "cuda" else ()
    return Receipt(
        asked={"prompt": clip.prompt, **values, "seed": clip.seed, "num": 1},
        ran=Ran(
            model=backbone.name,
            weights=backbone.weights_digest,
            device=str(backbone.device),
            dtype=str(backbone.dtype).removeprefix("torch."),
            scheduler=scheduler,
            timesteps=tuple(timesteps),
            guidance=guidance,
            layers=tuple(attend.receipt() for attend in attends),
            dense_steps=switched.dense_steps,
            dense_kernel=switched.dense[0].kernel if switched.dense else None,
            kept_share=kept,
            skipped_share=1 - kept,
            fallbacks=tuple(fallbacks),
            warnings=tuple(warnings),
            loras=tuple(loras_of(backbone)),
            masks=plan.masks_text(),
            plan=plan.digest,
        ),
        seconds={phase: round(seconds.get(phase, 0.0), 4) for phase in PHASES},
        peak_memory_bytes=peak_bytes,
        machine=this_machine(gpus),
        output=clip.path.name,
        output_sha256=output_sha256,
    )
