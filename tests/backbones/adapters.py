"""Adapters for the tiny transformer as other programs write them: PEFT itself, and diffusers' keys by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V

LAYERS = ["attn1.to_q", "attn2.to_out.0", "ff.net.0.proj", "proj_out"]


def adapted_by_peft(transformer: Path, seed: int = 3, **config: Any) -> PeftModel:
    """The transformer in a folder under PEFT's own pairs, with no matrix left zero."""
    torch.manual_seed(seed)
    model = get_peft_model(
        OpenSoraT2V.from_pretrained(transformer), LoraConfig(**{"target_modules": LAYERS, "r": 4, **config})
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def write_peft(folder: Path, transformer: Path, seed: int = 3, **config: Any) -> Path:
    """A PEFT folder, written by PEFT."""
    adapted_by_peft(transformer, seed, **config).save_pretrained(folder)
    return folder


def pairs_in(folder: Path) -> dict[str, Tensor]:
    """A PEFT folder's tensors by the names that its layers have in the transformer."""
    stored = load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): value for name, value in stored.items()}


def write_diffusers(
    file: Path, pairs: Mapping[str, Tensor], ends: tuple[str, str], alpha: float | None, metadata: dict | None = None
) -> Path:
    """A file with diffusers' names, `ends` being those of A and B, and an alpha a layer where one is given."""
    tensors = {}
    for name, value in pairs.items():
        layer, side, _ = name.rsplit(".", 2)
        tensors[f"transformer.{layer}.{ends[side == 'lora_B']}.weight"] = value
        if alpha is not None:
            tensors[f"transformer.{layer}.alpha"] = torch.tensor(alpha)
    save_file(tensors, file, metadata)
    return file
