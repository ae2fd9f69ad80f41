"""Training the text encoder of the embedded model to read: before the transformer, which then takes it as it is.

Trained together with the transformer, as a first version was, the encoder maps colours onto the line of their RGB
values (cosine .96 between orange and red) and says almost nothing of which object a word belongs to, and videos of two
objects mix them. Here every token must tell, by linear readers on its final state, its word and the attributes of its
phrase. Real models take a pre-trained encoder too.

Letters: B batch, L text tokens, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from vdit_cli.data.shapes_prompts import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SIZES,
    WORDS,
    Captioned,
    caption,
    held_out_prompts,
    parse_prompt,
    partial_prompts,
    tokens,
)
from vdit_cli.data.shapes_scenes import draw_scenes, leave_out
from vdit_cli.distillation.optimisers import build_optimisers
from vdit_cli.distillation.trainer import LossTerms, Trained, put_parameters, train
from vdit_cli.recipe_training import ShapesTextOptions
from vdit_cli.timing import Progress

END = "the end"
QUESTIONS: dict[str, tuple[str | None, ...]] = {
    "word": (*WORDS, END),
    "phrase": ("first", "second", "background", END),
    "size": (None, *SIZES),
    "colour": (None, *COLOURS),
    "shape": (None, *SHAPES),
    "motion": (None, *MOTIONS),
    "background": (None, *BACKGROUNDS),
}
"""What is asked of every token, and the possible answers; None where the token's phrase has no such attribute."""

IGNORED = -100


def text_config(options: ShapesTextOptions, tokenizer: PreTrainedTokenizerBase) -> T5Config:
    """A T5 encoder of `layers` layers over the world's words."""
    return T5Config(
        vocab_size=len(tokenizer),
        d_model=options.width,
        d_kv=options.width // 6,
        d_ff=4 * options.width,
        num_layers=options.layers,
        num_heads=6,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        feed_forward_proj="relu",
        tie_word_embeddings=False,
    )


def answers(scene: Captioned) -> list[dict[str, str | None]]:
    """What each token of the caption of `scene` is to tell, the end token last: a dictionary by question.

    The end token tells the first object and the background.
    """
    first, *others = (
        {kind: getattr(one, kind) for kind in ("size", "colour", "shape", "motion")} for one in scene.objects
    )
    ground = {"background": scene.background}
    told: list[dict[str, str | None]] = []
    phrase, facts = "first", first
    words = tokens(caption(scene))
    for word in words:
        if word == "over":
            phrase, facts = "background", ground
        elif word == ",":
            phrase, facts = "second", others[0]
        told.append({"word": word, "phrase": phrase, **facts})
    told.append({"word": END, "phrase": END, **first, **ground})
    return [{question: each.get(question) for question in QUESTIONS} for each in told]


class Reader(nn.Module):
    """The text encoder and a linear reader a question, which is thrown away after training."""

    def __init__(self, options: ShapesTextOptions, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text = T5EncoderModel(text_config(options, tokenizer))
        self.readers = nn.ModuleDict({name: nn.Linear(options.width, len(QUESTIONS[name])) for name in QUESTIONS})

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> dict[str, Tensor]:
        """Logits (B, L, answers) of each question."""
        states_BLC = self.text(input_ids=tokens_BL, attention_mask=mask_BL).last_hidden_state
        return {name: reader(states_BLC) for name, reader in self.readers.items()}


def reading_task(
    scenes: Sequence[Captioned], tokenizer: PreTrainedTokenizerBase, length: int, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Tokens (B, L), their mask and the right answers (B, L) of each question; IGNORED on padding.

    Raises ValueError where the tokenizer splits a word.
    """
    text = tokenizer([caption(scene) for scene in scenes], padding="max_length", max_length=length, return_tensors="pt")
    right = {name: torch.full_like(text["input_ids"], IGNORED) for name in QUESTIONS}
    lengths = text["attention_mask"].sum(1).tolist()
    for row, scene in enumerate(scenes):
        told = answers(scene)
        if len(told) != lengths[row]:
            raise ValueError(f"{len(told)} words became {lengths[row]} tokens: {caption(scene)!r}")
        for name, possible in QUESTIONS.items():
            right[name][row, : len(told)] = torch.tensor([possible.index(each[name]) for each in told])
    return text["input_ids"].to(device), text["attention_mask"].to(device), {n: r.to(device) for n, r in right.items()}


def train_text(
    tokenizer: PreTrainedTokenizerBase,
    options: ShapesTextOptions,
    seed: int,
    folder: Path,
    device: torch.device,
    progress: Progress,
) -> tuple[T5EncoderModel, Trained, float]:
    """Train the encoder from scratch on captions of training scenes, half of them with two objects.

    Returns it with the averaged weights, frozen, and the share of held-out captions that it reads wholly right.
    """
    torch.manual_seed(seed)
    model = Reader(options, tokenizer).to(device)
    optimisers = build_optimisers(
        model,
        lambda name, parameter: False,  # T5 does not scale its logits: Muon's steps saturate them
        matrix_rate=options.learning_rate,
        rate=options.learning_rate,
        betas=(0.9, 0.99),
        matrix_decay=0.0,
    )

    def loss(iteration: int, on_cpu: torch.Generator, on_device: torch.Generator) -> LossTerms:
        first = iteration * options.batch_size
        scenes = draw_scenes(seed + 2, options.batch_size, "train", 0.5, start=first)
        said = leave_out(scenes, seed + 2, options.left_out, start=first)
        asked, mask, right = reading_task(said, tokenizer, options.length, device)
        terms = {
            name: functional.cross_entropy(logits.flatten(0, 1), right[name].flatten(), ignore_index=IGNORED)
            for name, logits in model(asked, mask).items()
        }
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}

    trained = train(model, optimisers, loss, options, "text encoder", seed, folder, device, progress)
    put_parameters(model, trained.average)
    model.eval().requires_grad_(False)
    return model.text, trained, held_out_share(model, tokenizer, options.length, device)


@torch.no_grad()
def held_out_share(
    model: Reader, tokenizer: PreTrainedTokenizerBase, length: int, device: torch.device, count: int = 256
) -> float:
    """Share of held-out captions, `count` of one object, of two, and with parts left out, read right in each token."""
    prompts = held_out_prompts(count) + held_out_prompts(count, two_objects=True) + partial_prompts(count)
    asked, mask, right = reading_task([parse_prompt(prompt) for prompt in prompts], tokenizer, length, device)
    is_right_BL = torch.ones_like(asked, dtype=torch.bool)
    for name, logits in model(asked, mask).items():
        is_right_BL &= (logits.argmax(-1) == right[name]) | (right[name] == IGNORED)
    return is_right_BL.all(1).double().mean().item()
