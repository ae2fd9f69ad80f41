"""What `evdit generate` says before it samples, and what of it the receipt keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_pipeline import INDEX, write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.errors import DONE, USAGE

FORM = {
    "sentence": "a {size} {colour} {shape} over black",
    "second": "",
    "parts": {"size": ["small", "large"], "colour": ["red", "blue"], "shape": ["circle", "square"]},
    "example": "a large red circle over black",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model that takes any of its words, and the same one that knows sentences of FORM."""
    folder = tmp_path_factory.mktemp("models")
    any_words = write_pipeline(folder / "any")
    sentences = write_pipeline(folder / "form")
    index = INDEX | {"evdit": {**INDEX["evdit"], "prompt_form": FORM}}
    (sentences / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return str(any_words), str(sentences)


def test_one_line_first_then_what_was_set_and_all_with_v(evdit, models: tuple[str, str], tmp_path: Path):
    """Flags and recipes are told with their origin, defaults only on demand."""
    (tmp_path / "r.yaml").write_text("generate:\n  fps: 5\n", encoding="utf-8")
    flags = ("generate", "a red circle", "--model", models[0], "--steps", "1", "--config", "r.yaml", "--seed", "3")
    code, _, err = evdit(*flags, "--num", "2", "-o", "few")
    first, *others = err.splitlines()
    assert code == DONE
    assert first.startswith("tiny: 9 x 32 x 48, 1 steps of ddim, guidance 2, seeds 3 to 4, cpu float32, about ")
    told = [line for line in others if line.startswith("generate.")]
    assert told == [
        f'generate.model: "{models[0]}"  # --model {models[0]}',
        "generate.steps: 1  # --steps 1",
        "generate.seed: 3  # --seed 3",
        "generate.num: 2  # --num 2",
        "generate.fps: 5  # r.yaml:2 generate.fps",
    ]
    _, _, err = evdit(*flags, "-v", "-o", "all")
    assert "generate.guidance: 2.0  # default of tiny" in err.splitlines()
    assert "generate.batch: 1  # default" in err.splitlines()


@pytest.mark.parametrize(
    ("place", "prompt", "doubt", "works"),
    [
        (0, "a red dragon", "tiny does not know 'dragon'", "a red"),
        (1, "a red dragon", "tiny does not know 'dragon' and needs size and shape", "a large red circle over black"),
        (1, "a small circle", "tiny needs colour", "a small red circle over black"),
        (1, "over black a large red circle", "tiny knows sentences of one form only", "a large red circle over black"),
    ],
)
def test_a_prompt_that_is_not_understood(
    evdit, models: tuple[str, str], place: int, prompt: str, doubt: str, works: str
):
    """Said on stderr with a sentence that works, kept in the receipt; with --strict nothing is made."""
    flags = ("generate", prompt, "--model", models[place], "--steps", "1")
    code, _, err = evdit(*flags, "-o", "out.mp4")
    (line,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert code == DONE and line.startswith(f"warning: {doubt}") and line.endswith(f'(what works: "{works}")')
    assert Receipt.read("out.json").ran.warnings == (line.removeprefix("warning: "),)
    code, _, err = evdit(*flags, "-o", "strict.mp4", "--strict")
    assert code == USAGE and f"error: {doubt}" in err and f'try:   "{works}"' in err
    assert not Path("strict.mp4").exists()


def test_a_prompt_that_is_understood_gives_no_warning(evdit, models: tuple[str, str]):
    """Capitals and a full stop are no matter."""
    code, _, err = evdit(
        "generate", "A small BLUE square over black.", "--model", models[1], "--steps", "1", "-o", "a.mp4", "--strict"
    )
    assert code == DONE and "warning" not in err and Receipt.read("a.json").ran.warnings == ()


def test_a_length_that_the_model_was_not_made_for_is_in_the_receipt(evdit, models: tuple[str, str]):
    """Beside the prompt's doubts."""
    code, _, err = evdit("generate", "red", "--model", models[1], "--steps", "1", "--frames", "5", "-o", "a.mp4")
    length, words = Receipt.read("a.json").ran.warnings
    assert code == DONE and length.startswith("tiny was made for 9 frames") and words.startswith("tiny needs size")
    assert f"warning: {length}" in err.splitlines()
