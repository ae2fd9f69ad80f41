"""The clips that a training sees, its resumption bit for bit, and the tokenizer of the world."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel

from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.data.shapes_prompts import EXAMPLE_PROMPT, WORDS
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.shapes_folder import SCHEDULER_CONFIG, build_tokenizer
from vdit_cli.distillation.shapes_text import text_config
from vdit_cli.distillation.shapes_transformer import ClipPool, is_block_matrix, train_transformer, transformer_config
from vdit_cli.distillation.shapes_vae import vae_config
from vdit_cli.errors import Interrupted
from vdit_cli.recipe import ShapesTextOptions, ShapesTransformerOptions, ShapesVaeOptions
from vdit_cli.timing import Silent

CPU = torch.device("cpu")
TOKENIZER = build_tokenizer(32)
OPTIONS = ShapesTransformerOptions(
    layers=1,
    heads=2,
    head_dim=24,
    iterations=5,
    warmup=1,
    batch_size=2,
    clips=4,
    fresh_clips=2,
    fresh_every=2,
)


@pytest.fixture(scope="module")
def vae() -> CausalVAEModel:
    """A tiny VAE with random weights."""
    torch.manual_seed(0)
    return CausalVAEModel(vae_config(ShapesVaeOptions(hidden_size=8))).eval()


@pytest.fixture(scope="module")
def text() -> T5EncoderModel:
    """A tiny text encoder with random weights."""
    torch.manual_seed(0)
    return T5EncoderModel(text_config(ShapesTextOptions(layers=1, width=24), TOKENIZER)).eval()


class StopsAfter(Silent):
    """Asks to stop once `count` iterations have asked."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.left = count

    def should_stop(self) -> bool:
        """True at the `count`-th question."""
        self.left -= 1
        return self.left == 0


def _train(vae: CausalVAEModel, text: T5EncoderModel, folder: Path, progress: Silent) -> OpenSoraT2V:
    schedule = NoiseSchedule.from_config(SCHEDULER_CONFIG)
    model, _ = train_transformer(vae, text, TOKENIZER, schedule, OPTIONS, 3, folder, CPU, False, progress)
    return model


def test_an_interrupted_training_ends_bit_equal(vae: CausalVAEModel, text: T5EncoderModel, tmp_path: Path):
    """After its third iteration, one beyond a change of the pool's clips."""
    whole = _train(vae, text, tmp_path / "whole", Silent())
    with pytest.raises(Interrupted, match="3 of 5"):
        _train(vae, text, tmp_path / "cut", StopsAfter(2 + 3))  # each of the two batches of encoded clips asks once too
    resumed = _train(vae, text, tmp_path / "cut", Silent())
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name


def test_the_pool_keeps_the_newest_clips(vae: CausalVAEModel, text: T5EncoderModel):
    """However it came to an iteration: by turns of two clips, or filled at once."""
    by_turns, at_once = (ClipPool(vae, text, TOKENIZER, OPTIONS, 3, CPU) for _ in range(2))
    by_turns.fill(0, Silent())
    first = by_turns.latents_NCFhw.clone()
    for iteration in range(1, 4):
        by_turns.refresh(iteration)
    at_once.fill(3, Silent())
    assert torch.equal(by_turns.latents_NCFhw, at_once.latents_NCFhw)
    assert torch.equal(by_turns.states_NLC, at_once.states_NLC)
    changed = (by_turns.latents_NCFhw != first).flatten(1).any(1)
    assert changed.tolist() == [True, True, False, False]


def test_a_share_of_the_captions_is_emptied(vae: CausalVAEModel, text: T5EncoderModel):
    """All of them at a dropout of 1, none at 0; an emptied caption has the states of the empty prompt."""
    for dropout, emptied in ((1.0, True), (0.0, False)):
        pool = ClipPool(
            vae, text, TOKENIZER, ShapesTransformerOptions(**dict(OPTIONS.values(), prompt_dropout=dropout)), 3, CPU
        )
        pool.fill(0, Silent())
        _, states, mask = pool.batch(torch.Generator().manual_seed(0))
        assert [bool((row == pool.no_states_LC).all()) for row in states] == [emptied] * 2
        assert [int(row.sum()) == 1 for row in mask] == [emptied] * 2


def test_every_word_is_one_token_and_others_are_unknown():
    """So that a prompt's length is its number of words, and a strange word never looks like a known one."""
    tokenizer = build_tokenizer(32)
    for word in WORDS:
        assert len(tokenizer(word)["input_ids"]) == (2 if word != "," else 3), word
    ids = tokenizer(EXAMPLE_PROMPT)["input_ids"]
    assert len(ids) == len(EXAMPLE_PROMPT.split()) + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == EXAMPLE_PROMPT
    assert tokenizer.unk_token_id in tokenizer("a purple circle")["input_ids"]
    assert tokenizer("")["input_ids"] == [tokenizer.eos_token_id]


def test_muon_takes_the_matrices_of_the_blocks_alone():
    """Attention and feed-forward weights; no table, bias, embedding or output."""
    model = OpenSoraT2V(transformer_config(OPTIONS, 24))
    taken = [name for name, parameter in model.named_parameters() if is_block_matrix(name, parameter)]
    projections = {f"attn{i}.to_{part}.weight" for i in (1, 2) for part in ("q", "k", "v", "out.0")}
    assert {name.split(".", 2)[-1] for name in taken} == projections | {"ff.net.0.proj.weight", "ff.net.2.weight"}
