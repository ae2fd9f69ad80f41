"""A model folder as large as Open-Sora-Plan v1.2 (29 x 720p), its weights random: `python -m tests.full_size FOLDER`.

For measuring cost only. The transformer is of full size but for its text projection, which reads a small text encoder;
the VAE is small, since an analysis decodes nothing. A second argument is the number of layers, 32 in the release.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.tiny_pipeline import TRANSFORMER_CONFIG, write_pipeline
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V

SIZES = {
    "num_attention_heads": 24,
    "attention_head_dim": 96,
    "cross_attention_dim": 2304,
    "sample_size": [90, 160],
    "sample_size_t": 8,
}


def write_full_size(folder: Path, layers: int = 32) -> Path:
    """The folder; weights as training from scratch begins with, in bfloat16."""
    write_pipeline(folder, video_frames=29, height=720, width=1280, steps=100, guidance=7.5)
    with torch.device("meta"):
        model = OpenSoraT2V(TRANSFORMER_CONFIG | SIZES | {"num_layers": layers})
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    model.initialise(torch.Generator().manual_seed(0))
    model.save_pretrained(folder / "transformer")
    return folder


if __name__ == "__main__":
    write_full_size(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
