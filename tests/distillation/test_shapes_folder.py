"""The folder of the embedded model at its full size: what the registry promises is what training writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import T5EncoderModel

from tests.closeness import assert_close
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.distillation.shapes_folder import SHARD_BYTES, build_tokenizer, write_pipeline
from vdit_cli.distillation.shapes_text import text_config
from vdit_cli.distillation.shapes_transformer import transformer_config
from vdit_cli.distillation.shapes_vae import vae_config
from vdit_cli.recipe import load

pytestmark = pytest.mark.numerical

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "train-shapes.yaml"
MODEL_BYTES, FILE_BYTES = 38_000_000, 15_000_000
CARD = "README.md"


def test_the_registered_files_are_those_that_training_writes(tmp_path: Path):
    """Names and sizes, within what the repository may hold; the folder opens at the registered size."""
    options = load(RECIPE).train_shapes
    tokenizer = build_tokenizer(options.text.length)
    transformer = OpenSoraT2V(transformer_config(options.transformer, options.text.width))
    text, vae = T5EncoderModel(text_config(options.text, tokenizer)), CausalVAEModel(vae_config(options.vae))
    write_pipeline(tmp_path / "model", transformer, text, vae, tokenizer, "a card")
    written = {
        path.relative_to(tmp_path / "model").as_posix(): path.stat().st_size
        for path in (tmp_path / "model").rglob("*")
        if path.is_file() and path.name != CARD
    }
    modes = {path.stat().st_mode for path in (tmp_path / "model").rglob("*") if path.is_file()}
    (tmp_path / "as-the-umask-says").touch()
    assert modes == {(tmp_path / "as-the-umask-says").stat().st_mode}
    entry = find_source("shapes").entry
    promised = {needed.path: needed.bytes for needed in entry.files}
    assert written.keys() == promised.keys()
    weights = [path for path in promised if path.endswith(".safetensors")]
    assert [written[path] for path in weights] == [promised[path] for path in weights]
    assert sum(written.values()) <= MODEL_BYTES and max(written.values()) <= FILE_BYTES and SHARD_BYTES < FILE_BYTES
    assert_close(sum(parameter.numel() for parameter in transformer.parameters()), entry.parameters, rtol=0.01)
    backbone = open_backbone(find_source(str(tmp_path / "model")), device="cpu")
    size = (entry.video_frames, entry.height, entry.width)
    defaults = backbone.defaults
    assert (defaults.video_frames, defaults.height, defaults.width) == size
    assert (defaults.scheduler, defaults.steps, defaults.guidance) == ("ddim", 50, 3.0)
    assert backbone.grid(*size).tokens == entry.tokens
