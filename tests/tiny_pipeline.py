"""A tiny Open-Sora-Plan model with random weights, as a pipeline folder of ours and in the published layout.

Everything is made offline and is the same for the same seed: 2 transformer layers of 2 heads x 24, a VAE of 8 channels
with one block a level (4x8x8), a T5 encoder of width 16 whose tokenizer knows the words below.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel

TEXT_WIDTH = 16
TEXT_LENGTH = 24
VIDEO_FRAMES, HEIGHT, WIDTH = 9, 32, 48
WORDS = ("a", "small", "large", "red", "green", "blue", "circle", "square", "moving", "left", "right", "over", "black")

DEFAULTS: dict[str, Any] = {
    "video_frames": VIDEO_FRAMES,
    "height": HEIGHT,
    "width": WIDTH,
    "fps": 8,
    "steps": 3,
    "guidance": 2.0,
    "scheduler": "ddim",
}

TRANSFORMER_CONFIG: dict[str, Any] = {
    "_class_name": "OpenSoraT2V",
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "patch_size": 2,
    "patch_size_t": 1,
    "caption_channels": TEXT_WIDTH,
    "cross_attention_dim": 48,
    "sample_size": [HEIGHT // 8, WIDTH // 8],
    "sample_size_t": 3,
    "interpolation_scale_t": 1.0,
    "interpolation_scale_h": 1.0,
    "interpolation_scale_w": 1.0,
}

VAE_CONFIG: dict[str, Any] = {
    "_class_name": "CausalVAEModel",
    "hidden_size": 8,
    "hidden_size_mult": [1, 1, 1, 1],
    "norm_num_groups": 4,
    "num_res_blocks": 1,
    "z_channels": 4,
    "embed_dim": 4,
    "encoder_conv_in": "Conv2d",
    "encoder_attention": "AttnBlock3DFix",
    "decoder_attention": "AttnBlock3DFix",
    "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"],
    "decoder_resnet_blocks": ["ResnetBlock3D"] * 4,
    "encoder_spatial_downsample": ["Downsample", "Spatial2xTime2x3DDownsample", "Spatial2xTime2x3DDownsample", ""],
    "encoder_temporal_downsample": [""] * 4,
    "decoder_spatial_upsample": ["", "SpatialUpsample2x", "Spatial2xTime2x3DUpsample", "Spatial2xTime2x3DUpsample"],
    "decoder_temporal_upsample": [""] * 4,
}

SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}

INDEX: dict[str, Any] = {
    "_class_name": "OpenSoraPlanPipeline",
    "transformer": ["evdit", "OpenSoraT2V"],
    "vae": ["evdit", "CausalVAEModel"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "evdit": {"name": "tiny", "defaults": DEFAULTS},
}


def write_transformer(folder: Path, seed: int = 0, metadata: dict[str, str] | None = None, **changes: Any) -> None:
    """A transformer's folder; `changes` are config keys. No weight is left zero, so that every part shows."""
    torch.manual_seed(seed)
    model = OpenSoraT2V(TRANSFORMER_CONFIG | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, metadata=metadata)


def write_vae(folder: Path, seed: int = 0, **changes: Any) -> None:
    """A VAE's folder; `changes` are config keys."""
    torch.manual_seed(seed)
    CausalVAEModel(VAE_CONFIG | changes).save_pretrained(folder)


def write_text_encoder(folder: Path, tokenizer: Path, seed: int = 0) -> None:
    """A T5 encoder's folder, and its tokenizer in another or the same one."""
    torch.manual_seed(seed)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -20.0)] + [(f"▁{word}", -1.0) for word in WORDS]
    words = T5TokenizerFast(vocab=pieces, extra_ids=0)
    words.model_max_length = TEXT_LENGTH
    config = T5Config(
        vocab_size=len(pieces),
        d_model=TEXT_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    words.save_pretrained(tokenizer)
    T5EncoderModel(config).save_pretrained(folder)


def write_pipeline(folder: Path, seed: int = 0, **defaults: Any) -> Path:
    """A pipeline folder of ours (model_index.json and five parts); `defaults` change how it is sampled."""
    write_transformer(folder / "transformer", seed)
    write_vae(folder / "vae", seed, scaling_factor=0.5)
    write_text_encoder(folder / "text_encoder", folder / "tokenizer", seed)
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    write_json(folder / "model_index.json", INDEX | {"evdit": {"name": "tiny", "defaults": DEFAULTS | defaults}})
    return folder


def write_published(
    folder: Path, seed: int = 0, sizes: tuple[str, ...] = ("29x720p", "93x720p"), with_text: bool = False
) -> Path:
    """The published layout: a transformer a size beside vae/; the text encoder in mt5-xxl/ if `with_text`."""
    for number, size in enumerate(sizes):
        write_transformer(folder / size, seed + number)
    write_vae(folder / "vae", seed)
    if with_text:
        write_text_encoder(folder / "mt5-xxl", folder / "mt5-xxl", seed)
    return folder


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON in `path`, folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder that a test may damage."""
    shutil.copytree(source, target)
    return target
