"""Data for a tiny model, written as `evdit prepare-data` writes them, without a video or a VAE."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.tiny_pipeline import HEIGHT, VIDEO_FRAMES, WIDTH
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.data.facts import DataFacts
from vdit_cli.data.shards import write_index, write_shard

WORDS = ("a small red circle", "a large blue square moving left", "a green circle over black", "a red square")


def write_data(folder: Path, model: Path, count: int = 6) -> Path:
    """`count` clips of normal latents with real text states of the model in `model`, in two shards."""
    backbone = open_backbone(find_source(str(model)), device="cpu")
    shape = backbone.latent_shape(VIDEO_FRAMES, HEIGHT, WIDTH)
    captions = [WORDS[i % len(WORDS)] for i in range(count)]
    with backbone.resident("text"):
        text, null = backbone.encode_text(captions), backbone.encode_text([""])
    latents = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)) * 0.5
    shards = []
    for number, part in enumerate((slice(0, count // 2), slice(count // 2, count))):
        rows = TextStates(text.states_BLC[part], text.mask_BL[part])
        sources = [f"{i}.mp4" for i in range(count)][part]
        shards.append(write_shard(folder, f"shards/{number}.safetensors", latents[part], rows, sources, captions[part]))
    size = {"video_frames": VIDEO_FRAMES, "height": HEIGHT, "width": WIDTH, "fps": 8, "latent_shape": list(shape)}
    write_index(folder, DataFacts.of(backbone), size, null, shards, {})
    return folder
