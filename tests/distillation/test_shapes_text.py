"""What the text encoder of the embedded model is asked, and that it learns to answer for captions it never saw."""

from __future__ import annotations

from pathlib import Path

import torch

from vdit_cli.data.shapes_prompts import caption, parse_prompt
from vdit_cli.distillation import shapes_text
from vdit_cli.distillation.shapes_folder import build_tokenizer
from vdit_cli.distillation.shapes_text import IGNORED, QUESTIONS, answers, reading_task, train_text
from vdit_cli.recipe_training import ShapesTextOptions
from vdit_cli.timing import Silent

CPU = torch.device("cpu")
PROMPT = "a small red ring moving up over a navy background, and a large cyan cross circling"


def test_every_token_tells_of_its_own_phrase():
    """By hand: the second object's words tell nothing of the first, nor of the background."""
    told = dict(zip([*PROMPT.replace(",", " ,").split(), "</s>"], answers(parse_prompt(PROMPT)), strict=True))
    ring, cross = {"size": "small", "colour": "red"}, {"size": "large", "colour": "cyan"}
    assert told["ring"] == {
        "word": "ring", "phrase": "first", **ring, "shape": "ring", "motion": "moving up", "background": None
    }  # fmt: skip
    assert told["circling"] == {
        "word": "circling", "phrase": "second", **cross, "shape": "cross", "motion": "circling", "background": None
    }  # fmt: skip
    assert (told["navy"]["phrase"], told["navy"]["colour"], told["navy"]["background"]) == ("background", None, "navy")
    assert (told["</s>"]["colour"], told["</s>"]["background"]) == ("red", "navy")


def test_what_a_caption_leaves_out_is_answered_by_nothing():
    """By hand: without a size and a background no token tells one."""
    told = answers(parse_prompt("a red ring moving up, and a large cyan cross circling"))
    assert [each["size"] for each in told] == [None] * 5 + ["large"] * 7 + [None]
    assert {each["background"] for each in told} == {None}


def test_training_captions_leave_parts_out_at_their_share(tmp_path: Path, monkeypatch):
    """What the encoder is asked, read back from the captions; none leaves anything out at 0."""
    asked: list[str] = []

    def noted(scenes, *others):
        asked.extend(map(caption, scenes))
        return reading_task(scenes, *others)

    monkeypatch.setattr(shapes_text, "reading_task", noted)
    sizes = {"width": 6, "layers": 1, "iterations": 1, "batch_size": 512}
    for share, exact in ((0.0, 512), (1.0, 0)):
        asked.clear()
        options = ShapesTextOptions(left_out=share, **sizes)
        train_text(build_tokenizer(32), options, 0, tmp_path / str(share), CPU, Silent())
        assert sum(parse_prompt(each).is_exact for each in asked[:512]) == exact
        assert any(not parse_prompt(each).is_exact for each in asked[512:])  # what it is judged by


def test_the_task_has_an_answer_a_token_and_none_on_padding():
    """Index by index, for one caption of two objects."""
    tokens, mask, right = reading_task([parse_prompt(PROMPT)], build_tokenizer(32), 32, CPU)
    assert tokens.shape == mask.shape == (1, 32)
    for name, possible in QUESTIONS.items():
        assert [possible[i] for i in right[name][0, mask[0] == 1]] == [a[name] for a in answers(parse_prompt(PROMPT))]
        assert (right[name][0, mask[0] == 0] == IGNORED).all()


def test_a_short_training_reads_what_it_never_saw(tmp_path: Path):
    """At a quarter of the width it reads most held-out captions wholly right, and untrained none of them."""
    tokenizer = build_tokenizer(32)
    sizes = {"width": 48, "warmup": 10, "batch_size": 32, "learning_rate": 5e-3, "average_keep": 0.9}
    _, _, before = train_text(tokenizer, ShapesTextOptions(iterations=1, **sizes), 0, tmp_path / "a", CPU, Silent())
    text, trained, share = train_text(
        tokenizer, ShapesTextOptions(iterations=200, **sizes), 0, tmp_path / "b", CPU, Silent()
    )
    assert before == 0 and share > 0.75 and trained.iterations == 200
    assert not any(parameter.requires_grad for parameter in text.parameters())
