"""The clips that a training sees, its resumption bit for bit, and the tokenizer of the world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import T5EncoderModel

from tests.closeness import assert_close, assert_within
from vdit_cli.backbones.open_sora_plan.transformer import OpenSoraT2V
from vdit_cli.backbones.open_sora_plan.vae import CausalVAEModel
from vdit_cli.data.shapes_prompts import EXAMPLE_PROMPT, WORDS, tokens
from vdit_cli.data.shapes_scenes import Scene, draw_scenes
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.shapes_folder import SCHEDULER_CONFIG, build_tokenizer
from vdit_cli.distillation.shapes_text import text_config
from vdit_cli.distillation.shapes_transformer import (
    ClipPool,
    errors_by_time,
    is_moved_by_muon,
    is_time_modulation,
    losses_by_time,
    lost_times,
    noise_weights,
    train_transformer,
    transformer_config,
)
from vdit_cli.distillation.shapes_vae import vae_config
from vdit_cli.errors import Interrupted
from vdit_cli.recipe_training import ShapesTextOptions, ShapesTransformerOptions, ShapesVaeOptions
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


def test_the_pool_s_captions_leave_parts_out(vae: CausalVAEModel, text: T5EncoderModel):
    """All that may be at a share of 1, so that they are shorter than the sentences of the same clips."""
    whole, partial = (
        ClipPool(vae, text, TOKENIZER, ShapesTransformerOptions(**dict(OPTIONS.values(), left_out=share)), 3, CPU)
        for share in (0.0, 1.0)
    )
    for pool in (whole, partial):
        pool.fill(0, Silent())
    assert torch.equal(whole.latents_NCFhw, partial.latents_NCFhw)
    assert (partial.mask_NL.sum(1) < whole.mask_NL.sum(1)).all()
    scenes = draw_scenes(4, 4, "train", OPTIONS.two_objects)
    assert partial.mask_NL.sum(1).tolist() == [len(tokens(said(scene))) + 1 for scene in scenes]


def said(scene: Scene) -> str:
    """Colour and shape alone."""
    return ", and ".join(f"a {each.colour} {each.shape}" for each in scene.objects)


@pytest.mark.numerical
def test_losses_by_time_are_the_means_of_their_bands():
    """Against a loop over many uniform times; together they make the whole loss."""
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(1000, (200_000,), generator=generator)
    errors = (t / 100).floor() + torch.rand(len(t), generator=generator)
    found = losses_by_time(errors, t, 1000)
    assert list(found)[:2] == ["loss_0_99", "loss_100_199"] and len(found) == 10
    assert_close(torch.stack(list(found.values())).mean(), errors.mean())
    for band, value in enumerate(found.values()):
        inside = errors[(t >= band * 100) & (t < band * 100 + 100)]
        assert_close(value, inside.sum() / 20_000)
        # The number of times in a band is one of 20,000 with a deviation of 134.
        assert_close(value, inside.mean(), rtol=0.04)
    few = losses_by_time(torch.ones(2), torch.tensor([7, 950]), 1000)
    assert few["loss_0_99"] == 5 and few["loss_100_199"] == 0


@pytest.mark.numerical
def test_errors_of_little_noise_weigh_by_its_square():
    """By hand, and all alike at 0."""
    sigma = torch.tensor([0.03, 0.15, 0.3, 0.9])
    assert_close(noise_weights(sigma, 0.3), torch.tensor([0.01, 0.25, 1.0, 1.0]))
    assert noise_weights(sigma, 0.0).tolist() == [1.0] * 4


def test_a_training_weighs_errors_of_little_noise_less(vae, text, tmp_path: Path):
    """The first loss is smaller where all noise counts as little; the losses by time are not weighed."""
    losses, bands = [], []
    for low_noise in (0.0, 1.0):
        options = ShapesTransformerOptions(**dict(OPTIONS.values(), iterations=1, low_noise=low_noise))
        folder = tmp_path / str(low_noise)
        schedule = NoiseSchedule.from_config(SCHEDULER_CONFIG)
        train_transformer(vae, text, TOKENIZER, schedule, options, 3, folder, CPU, False, Silent())
        line = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8"))
        losses.append(line["loss"])
        bands.append({name: value for name, value in line.items() if name.startswith("loss_")})
    assert losses[1] < losses[0] and bands[0] == bands[1]


@pytest.mark.numerical
def test_the_time_modulation_is_slow_and_the_losses_by_time_are_written(vae, text, tmp_path: Path):
    """At a share of 0 it stays as it began, while all else moves; metrics.jsonl has a loss a band."""
    options = ShapesTransformerOptions(**dict(OPTIONS.values(), time_rate=0.0, low_noise=0.0, log_every=1))
    schedule = NoiseSchedule.from_config(SCHEDULER_CONFIG)
    model, _ = train_transformer(vae, text, TOKENIZER, schedule, options, 3, tmp_path, CPU, False, Silent())
    fresh = OpenSoraT2V(transformer_config(options, 24))
    fresh.initialise(torch.Generator().manual_seed(3))
    now = dict(model.named_parameters())
    stayed = {name for name, parameter in fresh.named_parameters() if torch.equal(parameter, now[name])}
    slow = {name for name in now if is_time_modulation(name)}
    assert slow <= stayed and len(slow) == 6
    moved = {name.split(".")[0] for name in now.keys() - stayed}
    assert moved >= {"transformer_blocks", "pos_embed", "proj_out", "caption_projection"}
    line = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    bands = torch.tensor([line[f"loss_{low}_{low + 99}"] for low in range(0, 1000, 100)])
    assert_close(bands.mean(), torch.tensor(line["loss"]))


@pytest.mark.numerical
def test_errors_by_time_are_those_of_v(vae: CausalVAEModel, text: T5EncoderModel):
    """A network that tells what it is told to: its offset squared; one that tells 0: the square of v, a loop's."""
    pool = ClipPool(vae, text, TOKENIZER, OPTIONS, 3, CPU)
    pool.fill(0, Silent())
    schedule = NoiseSchedule.from_config(SCHEDULER_CONFIG)
    eps = torch.randn(pool.latents_NCFhw.shape, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []

    def shifted(x, t, states, mask):
        seen.extend(t.tolist())
        assert torch.equal(states, pool.states_NLC) and torch.equal(mask, pool.mask_NL)
        a, s = schedule.at(t, x)
        return a * eps - s * pool.latents_NCFhw + 0.5 * (t == 20).view(-1, 1, 1, 1, 1)

    found = errors_by_time(shifted, pool, schedule, (20, 749))
    assert seen == [20] * 4 + [749] * 4 and list(found) == [20, 749]
    assert_close(found[20], 0.25)
    assert_within(found[749], 1e-12, planted=0.25)
    nothing = errors_by_time(lambda x, *others: torch.zeros_like(x), pool, schedule, (499,))
    a, s = float(schedule.alphas[499]), float(schedule.sigmas[499])
    assert_close(nothing[499], float((a * eps - s * pool.latents_NCFhw).double().square().mean()), rtol=1e-5)


def test_times_are_lost_where_they_are_far_worse_than_those_above():
    """By hand, from the model that jumped and from a sound one."""
    assert lost_times({20: 0.888, 49: 0.738, 99: 0.035, 249: 0.015, 749: 0.367}) == [20, 49]
    assert lost_times({20: 0.224, 49: 0.137, 99: 0.088, 249: 0.056, 749: 0.439}) == []


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


def test_muon_takes_the_matrices_of_the_blocks_and_of_the_time():
    """Attention, feed-forward and modulation; no table, bias, embedding or output."""
    model = OpenSoraT2V(transformer_config(OPTIONS, 24))
    taken = [name for name, parameter in model.named_parameters() if is_moved_by_muon(name, parameter)]
    projections = {
        f"transformer_blocks.0.attn{i}.to_{part}.weight" for i in (1, 2) for part in ("q", "k", "v", "out.0")
    }
    feed_forward = {f"transformer_blocks.0.ff.net.{part}.weight" for part in ("0.proj", "2")}
    embedder = {f"adaln_single.emb.timestep_embedder.linear_{i}.weight" for i in (1, 2)}
    assert set(taken) == projections | feed_forward | embedder | {"adaln_single.linear.weight"}
