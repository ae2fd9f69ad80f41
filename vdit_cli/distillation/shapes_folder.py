"""The embedded model as a pipeline folder: tokenizer, configurations, float16 weights and a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, T5EncoderModel, T5TokenizerFast
from transformers.utils.logging import disable_progress_bar

from vdit_cli import __version__
from vdit_cli.artifacts.atomic import write_json, write_text
from vdit_cli.backbones.open_sora_plan.loading import save_weights
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.data.shapes_prompts import PROMPT_FORM, WORDS
from vdit_cli.distillation.metrics import loss_told

SCHEDULER_CONFIG: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
"""Diffusers' default linear betas; sampling starts at the last timestep and ends on clean data."""

DEFAULTS: dict[str, Any] = {
    "video_frames": 29,
    "height": 128,
    "width": 128,
    "fps": 12,
    "steps": 50,
    "guidance": 3.0,
    "scheduler": "ddim",
    "prompt_template": "{prompt}",
    "negative": "",
}


SHARD_BYTES = 14_000_000
"""Weights travel with the package's source, where no file is to be larger than 15 MB."""


def build_tokenizer(text_length: int) -> PreTrainedTokenizerBase:
    """A unigram tokenizer over the world's words, made without any file or network."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -20.0), (",", -1.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS if word != ","]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0)
    tokenizer.model_max_length = text_length
    return tokenizer


def save_text(text: T5EncoderModel, folder: Path) -> None:
    """Write the text encoder as transformers does, its weights readable to whom its config is."""
    text.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # safetensors makes files for their owner alone, whatever the umask
        weights.chmod((folder / "config.json").stat().st_mode)


def write_pipeline(
    folder: Path,
    transformer: OpenSoraT2V,
    text: T5EncoderModel,
    vae: CausalVAEModel,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
) -> None:
    """Write the pipeline folder; weights in float16. `model_index.json` comes last, so a cut-off folder is no model."""
    for name, module in (("transformer", transformer), ("vae", vae)):
        save_weights(module, folder / name, module.config, dtype=torch.float16, max_shard_bytes=SHARD_BYTES)
    disable_progress_bar()  # a bar for a file of 2 MB
    save_text(text.half(), folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    write_text(folder / "README.md", card)
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "OpenSoraPlanPipeline",
            "_evdit_version": __version__,
            "transformer": ["evdit", "OpenSoraT2V"],
            "vae": ["evdit", "CausalVAEModel"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5TokenizerFast"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "evdit": {"name": "shapes", "defaults": DEFAULTS, "prompt_form": PROMPT_FORM.content()},
        },
    )


def model_card(facts: dict[str, Any], recipe: str) -> str:
    """The README.md of the folder: what it is, what it was trained on, how long and where, and how to do it again.

    `facts` is what training.json holds; `recipe` are the resolved options as YAML.
    """
    vae, psnr = facts["vae"], facts["vae"]["psnr"]
    parts = (("VAE", vae), ("text encoder", facts["text"]), ("transformer", facts["transformer"]))
    trained = "\n".join(
        f"| {name} | {part['iterations']} | {part['batch']} | {part['seconds']:.0f} | {loss_told(part['loss'])} |"
        for name, part in parts
    )
    motions = "\n".join(f"| {name} | {value:.2f} |" for name, value in psnr.items() if name not in ("all", "worst"))
    errors = " ".join(f"| {error:.3f}" for error in facts["transformer"]["errors"].values())
    times = " ".join(f"| {time}" for time in facts["transformer"]["errors"])
    changed = "".join(f"\n- {each}" for each in facts["changes"])
    changed = f"\nOn the way these values were changed to the recipe's:\n{changed}\n" if changed else ""
    return f"""# shapes

A text-to-video model small enough to travel with the package: an OpenSoraT2V transformer, a CausalVAEModel and a T5
encoder, trained from scratch on clips of a procedural world (29 frames of 128 x 128). It knows
{len(WORDS) - 1} words and a comma, and nothing else. License: Apache-2.0.

It reads sentences of one form: `{PROMPT_FORM.sentence}`, and for a second
object of another colour `{PROMPT_FORM.second}` behind it. What stands in square brackets may be left out; the model
then shows any. Other sentences and other words give shreds of colour. It makes no third object, no camera, and nothing
but this world.

## Training
| part | iterations | batch | seconds | final loss |
|---|---|---|---|---|
{trained}

On {facts["machine"]}, torch {facts["torch"]}, {facts["date"]}; again, with the recipe below as a file:
`evdit train-shapes --config recipe.yaml -o RUN`.
Scenes are drawn from the training combinations only; 36 of 360 colour, shape and motion triples are held out.
The text encoder is trained first, to tell of each token its word and the attributes of its phrase; it reads
{facts["text"]["read"]:.3f} of 768 held-out captions without a mistake.
{changed}
Mean squared error of v at a time t of 999, on unseen clips:

| t {times} |
|---{"|---" * len(facts["transformer"]["errors"])}|
| error {errors} |

## VAE
PSNR in dB on {vae["clips"]} unseen clips: mean {psnr["all"]:.2f}, worst {psnr["worst"]:.2f}.

| motion of the first object | PSNR |
|---|---|
{motions}

## Recipe
```yaml
{recipe}
```
"""
