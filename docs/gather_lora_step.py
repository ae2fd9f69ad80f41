"""Measure a LoRA training step of Open-Sora-Plan at full size, for docs/data/lora-step.json and docs/results.md.

python docs/gather_lora_step.py /tmp/full-size

One GPU of 80 GB, 12 GB of disk and about 5 minutes (estimated). The weights are random, of the release's sizes, but for
VAE and text encoder, which are those of `shapes`: a training step calls neither, and texts of another width change one
small layer. Data are two clips of random latents. What runs is `evdit distill-mlcd` itself, in the largest of SIZES
that fits, a few iterations; the first WARM of them are left out.
"""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gather_students import machine_of
from script import run

from vdit_cli.artifacts.atomic import write_json
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.bench.model_sizes import SIZES as MODELS
from vdit_cli.bench.model_sizes import ModelSize
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import write_index, write_shard
from vdit_cli.errors import FAILED, OUT_OF_MEMORY, EvditError

DATA = Path(__file__).parent / "data" / "lora-step.json"
FULL = MODELS["open-sora-plan-29"]
SIZES = ((720, 1280), (480, 640), (256, 256))
"""Heights and widths of the video, the largest first."""
VIDEO_FRAMES, RANK, WARM, ITERATIONS = 29, 64, 2, 8
GUIDANCE = 7.5
"""Of the teacher, as the release is sampled: two branches a call."""
COLUMNS = [
    ["video", "video", ""],
    ["tokens", "tokens", ",d"],
    ["rank", "rank", "d"],
    ["seconds a step", "seconds", ".2f"],
    ["peak memory, GiB", "memory", ".1f"],
]


def write_model(folder: Path, size: ModelSize) -> Path:
    """A model folder: a transformer of this size with random weights in bfloat16, all other parts those of `shapes`."""
    shapes = find_source("shapes").folder
    left_out = shutil.ignore_patterns(
        "diffusion_pytorch_model-*", "*.index.json", "README.md", "SHA256SUMS", "training.json"
    )
    shutil.copytree(shapes, folder, ignore=left_out, dirs_exist_ok=True)
    config = json.loads((shapes / "transformer" / "config.json").read_text(encoding="utf-8"))
    own = size.config | {"caption_channels": config["caption_channels"], "cross_attention_dim": size.channels}
    with torch.device("meta"):
        model = OpenSoraT2V(config | own)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    model.initialise(generator)
    with torch.no_grad():  # it starts as zero, which would leave no gradient at all
        model.proj_out.weight.normal_(0, 0.02, generator=generator)
    model.save_pretrained(folder / "transformer")
    index = json.loads((shapes / "model_index.json").read_text(encoding="utf-8"))
    index["evdit"]["name"] = size.name
    index["evdit"]["defaults"]["guidance"] = GUIDANCE
    write_json(folder / "model_index.json", index)
    return folder


def write_clips(folder: Path, model: Path, video: tuple[int, int, int], text_tokens: int) -> Path:
    """Two prepared clips of normal numbers for a model: latents of (frames, height, width), and texts."""
    backbone = open_backbone(find_source(str(model)), device="cpu")
    shape = backbone.latent_shape(*video)
    generator = torch.Generator().manual_seed(0)
    width = backbone.transformer_config["caption_channels"]  # type: ignore[attr-defined]
    states = torch.randn(3, text_tokens, width, generator=generator)
    text, null = (TextStates(each, torch.ones(each.shape[:2], dtype=torch.int64)) for each in (states[:2], states[2:]))
    latents = torch.randn(2, *shape, generator=generator)
    shard = write_shard(folder, "shards/0.safetensors", latents, text, ["0", "1"], ["noise", "noise"])
    size = dict(zip(("video_frames", "height", "width"), video, strict=True)) | {"fps": 24, "latent_shape": list(shape)}
    write_index(folder, DataFacts.of(backbone), size, null, [shard], {})
    return folder


def step_command(model: Path, data: Path, run: Path, rank: int, iterations: int) -> list[str]:
    """The words of the training: a clip a step, activations computed again, every step a line of metrics.jsonl."""
    values = {
        "iterations": iterations,
        "batch_size": 1,
        "gradient_checkpointing": "true",
        "precision": "bfloat16",
        "compile": "none",
        "held_out": 0,
        "previews": 0,
        "warmup": 1,
        "log_every": 1,
    }
    sets = [word for key, value in values.items() for word in ("--set", f"distill_mlcd.{key}={value}")]
    named = ["--model", str(model), "--data", str(data), "--steps", "4", "--lora-rank", str(rank), "-o", str(run)]
    return ["evdit", "distill-mlcd", *named, *sets]


def measure(
    folder: Path,
    model_size: ModelSize = FULL,
    sizes: Sequence[tuple[int, int]] = SIZES,
    rank: int = RANK,
    iterations: int = ITERATIONS,
) -> dict[str, Any]:
    """The file's content, measured in `folder`: a row for each size that did not fit, and one for the first that did.

    Raises EvditError where none fits, and where a training fails otherwise.
    """
    model = folder / "model"
    if not model.is_dir():
        write_model(folder / "writing", model_size).rename(model)
    rows: list[dict[str, Any]] = []
    for height, width in sizes:
        video = (VIDEO_FRAMES, height, width)
        name = "x".join(map(str, video))
        data, run = folder / "data" / name, folder / "runs" / name
        if not (data / "index.json").is_file():
            write_clips(data, model, video, model_size.text_tokens)
        command = step_command(model, data, run, rank, iterations)
        code = subprocess.run([sys.executable, "-m", "vdit_cli", *command[1:]], check=False).returncode
        if code not in (0, OUT_OF_MEMORY):
            raise EvditError(f"exit {code} of {shlex.join(command)}", exit_code=FAILED)
        tokens = open_backbone(find_source(str(model)), device="cpu").grid(*video).tokens
        told = figures(run) if code == 0 else {}
        rows.append({"video": name.replace("x", " x "), "tokens": tokens, "rank": rank, **told})
        if code == 0:
            shown = step_command(Path("MODEL"), Path("DATA"), Path("RUN"), rank, iterations)
            return {
                "machine": machine_of(folder / "runs"),
                "command": f"python docs/gather_lora_step.py FOLDER, which runs {shlex.join(shown)}",
                "model": {"layers": model_size.layers, "heads": model_size.heads, "head_dim": model_size.head_dim},
                "tables": {"step": {"columns": COLUMNS, "rows": rows}},
            }
    raise EvditError(f"not even {rows[-1]['video']} fits into memory", exit_code=OUT_OF_MEMORY)


def figures(run: Path) -> dict[str, Any]:
    """Seconds a step, the median and each of those behind the first WARM, and the largest memory of a training."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [1 / line["iterations_per_second"] for line in lines[WARM:]]
    receipt = json.loads((run / "receipt.json").read_text(encoding="utf-8"))
    return {
        "seconds": statistics.median(seconds),
        "each": [round(each, 4) for each in seconds],
        "memory": receipt["peak_memory_bytes"] / 2**30,
    }


def main(arguments: Sequence[str]) -> None:
    """Measure in a folder and write docs/data/lora-step.json, which is printed too. Raises EvditError."""
    if len(arguments) != 1:
        raise EvditError(
            f"the script takes a folder to work in: {len(arguments)} words were given",
            next_steps=["python docs/gather_lora_step.py /tmp/full-size"],
        )
    text = json.dumps(measure(Path(arguments[0])), indent=1) + "\n"
    DATA.write_text(text, encoding="utf-8", newline="\n")
    sys.stdout.write(text)


if __name__ == "__main__":
    sys.exit(run(main))
