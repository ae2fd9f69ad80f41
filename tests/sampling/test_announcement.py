"""What `evdit generate` says before it samples, and what of it the receipt keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny_pipeline import INDEX, copied, write_json, write_pipeline, write_published
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import Request
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.base import as_read, cut_of
from vdit_cli.backbones.open_sora_plan.offload import Parts
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import DONE, USAGE, quoted
from vdit_cli.recipe import GenerateOptions
from vdit_cli.sampling.generate import base_doubts

FORM = {
    "sentence": "a {size} {colour} {shape} over black",
    "second": "",
    "parts": {"size": ["small", "large"], "colour": ["red", "blue"], "shape": ["circle", "square"]},
    "example": "a large red circle over black",
    "different": [],
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
    assert first.startswith(
        "tiny: 9 x 32 x 48, 1 step of ddim, guidance 2, full attention, seeds 3 to 4, cpu float32, about "
    )
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


def test_a_known_sentence_is_read_without_its_marks(models: tuple[str, str]):
    """Marks that no training sentence had never reach the text encoder of such a model; others get all of them."""
    marked = '"A small; BLUE (square)", over black!'
    any_words, sentences = (open_backbone(find_source(model), device="cpu") for model in models)
    assert as_read(any_words, marked) == marked and as_read(sentences, "red!") == "red!"
    assert as_read(sentences, marked.replace('",', '"')) == "a small blue square over black"


def test_a_prompt_that_was_not_quoted(evdit, models: tuple[str, str]):
    """Words of one prompt that came as several."""
    code, _, err = evdit("generate", "the", "red", "circle", "--model", models[0], "-o", "out")
    assert code == USAGE and 'try:   "the red circle"  (quoted, it is one prompt)' in err


def test_a_size_that_the_model_was_not_made_for_is_in_the_receipt(evdit, models: tuple[str, str]):
    """Beside the prompt's doubts."""
    code, _, err = evdit(
        "generate", "red", "--model", models[1], "--steps", "1", "--frames", "5", "--width", "32", "-o", "a.mp4"
    )
    length, size, words = Receipt.read("a.json").ran.warnings
    assert code == DONE and length.startswith("tiny was made for 9 frames") and words.startswith("tiny needs size")
    assert size == "tiny was made for 32 x 48 pixels: 32 x 32 may look worse (--height 32 --width 48)"
    assert {f"warning: {length}", f"warning: {size}"} <= set(err.splitlines())


LONG = " ".join(["a small red circle"] * 21)


def test_a_prompt_longer_than_the_text_encoder_reads(evdit, models: tuple[str, str], monkeypatch):
    """How many tokens of how many, and the words left out; the prompt that is advised is read whole."""
    flags = ("generate", LONG, "--model", models[0], "--steps", "1")
    code, _, err = evdit(*flags, "-o", "out.mp4")
    (line,) = Receipt.read("out.json").ran.warnings
    assert code == DONE and f"warning: {line}" in err.splitlines()
    said = "tiny reads 24 of 85 tokens and leaves out the last 61 words, "
    left_out = "'circle a small red circle a ... red circle a small red circle'"
    read_whole = " ".join(LONG.split()[:23])
    assert line == f'{said}{left_out} (what works: "{read_whole}")'
    code, _, err = evdit("generate", read_whole, *flags[2:], "-o", "short.mp4")
    assert code == DONE and "warning" not in err
    assert Path("short.mp4").read_bytes() != b"" and Receipt.read("short.json").ran.warnings == ()
    monkeypatch.setattr(Parts, "resident", lambda *_: pytest.fail("a part was loaded"))
    code, _, err = evdit(*flags, "-o", "strict.mp4", "--strict")
    assert code == USAGE and f"error: {said}" in err and f'try:   "{read_whole}"' in err


def test_the_words_left_out_change_nothing_and_the_others_do(models: tuple[str, str]):
    """The truth of what `cut_of` says, from the encoder itself; a word cut in its middle counts as left out."""
    backbone = open_backbone(find_source(models[0]), device="cpu")
    for text in (LONG, "a " * 22 + "dragon " * 3, "a " * 23 + "b", "a, " * 30 + "red"):
        cut = cut_of(backbone, text)
        words = text.split()
        assert cut is not None and cut.limit == 24 and list(cut.words) == words[-len(cut.words) :]
        first = len(words) - len(cut.words)
        states, *others = (
            backbone.encode_text([" ".join(each)]).states_BLC
            for each in (words, [*words[: first + 1], *["green"] * 30], [*words[: first - 1], *["green"] * 30])
        )
        assert torch.equal(states, others[0]) and not torch.equal(states, others[1])
    assert cut_of(backbone, "a " * 23) is None


def test_the_models_template_counts(evdit, tmp_path: Path):
    """The prompt is advised that the published model's own words leave room for."""
    model = write_published(tmp_path / "published", with_text=True)
    flags = ("--model", str(model), "--frames", "9", "--height", "32", "--width", "48", "--strict", "-o", "out.mp4")
    code, _, err = evdit("generate", LONG, *flags)
    assert code == USAGE and "open-sora-plan reads 24 of " in err
    advised = err.rstrip().splitlines()[-1].partition('"')[2].rstrip('"')
    assert LONG.startswith(advised)
    backbone = open_backbone(find_source(str(model)), device="cpu")
    assert cut_of(backbone, as_read(backbone, advised)) is None
    assert cut_of(backbone, as_read(backbone, LONG[: len(advised) + 6])) is not None


def test_analyze_says_it_too(evdit, models: tuple[str, str], tmp_path: Path):
    """Before weights load."""
    (tmp_path / "prompts.txt").write_text(LONG, encoding="utf-8")
    code, _, err = evdit("analyze", "--model", models[0], "--prompts-file", "prompts.txt", "-o", "run")
    assert code == DONE, err
    assert "warning: tiny reads 24 of 85 tokens and leaves out the last 61 words, " in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--guidance", "1", "--negative", "red"],
            "--negative red has no effect: guidance 1 asks for no negative prompt",
        ),
        (["--negative", LONG], "of the negative prompt tiny reads 24 of 85 tokens and leaves out the last 61 words, "),
        (["--batch", "4"], "--batch 4 has no effect: there is one video to make"),
        (["--allow-other-weights"], "--allow-other-weights has no effect: masks auto were searched on no weights"),
        (["--vae-tiling"], "--vae-tiling has no effect: the video fits in one tile"),
    ],
)
def test_an_option_without_effect(evdit, models: tuple[str, str], flags: list[str], says: str):
    """Said, and kept in the receipt."""
    code, _, err = evdit("generate", "a red circle", "--model", models[0], "--steps", "1", *flags, "-o", "out.mp4")
    assert code == DONE, err
    (line,) = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert line.startswith(f"warning: {says}")
    assert Receipt.read("out.json").ran.warnings == (line.removeprefix("warning: "),)


@pytest.mark.parametrize(
    "flags",
    [["--negative", "red"], ["--guidance", "1", "--negative", ""], ["--batch", "2", "--num", "2"]],
    ids=str,
)
def test_an_option_with_an_effect_is_no_warning(evdit, models: tuple[str, str], flags: list[str]):
    """Nor one that asks for what is so."""
    code, _, err = evdit("generate", "a red circle", "--model", models[0], "--steps", "1", *flags, "-o", "out/")
    assert code == DONE and "no effect" not in err


def test_tiles_that_the_video_does_not_fit_in_have_an_effect(evdit, models: tuple[str, str]):
    """One latent frame more than a tile's."""
    flags = ("--frames", "61", "--height", "32", "--width", "32", "--steps", "1", "--vae-tiling")
    _, _, err = evdit("generate", "a red circle", "--model", models[0], *flags, "--batch", "2", "-o", "out.mp4")
    assert "--batch 2 has no effect" in err and "--vae-tiling has no effect" not in err


def test_a_negative_prompt_for_a_student_of_distilled_guidance(evdit, models: tuple[str, str], tmp_path: Path):
    """It has no null branch, and says why."""
    student = copied(Path(models[0]) / "transformer", tmp_path / "student")
    Sampler("milestones", (999, 499), 1.0).write(student)
    flags = ("--model", models[0], "--checkpoint", str(student), "--negative", "red", "-o", "out.mp4")
    code, _, err = evdit("generate", "a red circle", *flags)
    (line,) = Receipt.read("out.json").ran.warnings
    assert code == DONE and f"warning: {line}" in err.splitlines()
    assert line.endswith("guidance 1 asks for no negative prompt: this student has it distilled in")


@pytest.mark.parametrize(
    ("told", "model", "is_said"),
    [
        ({"command": "distill-kd", "model": "shapes"}, "shapes", False),
        ({"command": "distill-kd", "model": "shapes"}, "other", True),
        ({"command": "distill-mlcd", "model": "here/model"}, "there/model", True),  # both are there
        ({"command": "distill-mlcd", "model": "here/model"}, "./here/../here/model", False),
        ({"command": "distill-mlcd", "model": "gone/model"}, "there/model", False),  # perhaps it was moved
        ({"command": "distill-mlcd", "model": "hub/model"}, "hub/other", True),
        ({"command": "train-shapes", "model": "shapes"}, "other", False),
        ({"command": "distill-kd", "model": "~nobody-at-all/" + "x" * 300}, "other", True),
        ({"model": 3}, "other", False),
        (None, "other", False),
    ],
)
@pytest.mark.parametrize("checkpoint", ["run", "run/student", "run/steps-4/student"])
def test_a_student_of_another_base_is_told_by_its_run(
    told: dict[str, object] | None, model: str, is_said: bool, checkpoint: str, tmp_path: Path, monkeypatch
):
    """From any folder of it; no weights are there to read."""
    monkeypatch.chdir(tmp_path)
    for folder in ("run/student", "run/steps-4/student", "here/model", "there/model"):
        Path(folder).mkdir(parents=True)
    if told is not None:
        write_json(Path("run/run.json"), {**Request("distill-kd", "shapes", {}).manifest(), **told})
    said = base_doubts(GenerateOptions(model=model, checkpoint=checkpoint))
    assert len(said) == is_said
    assert not is_said or f"--model {quoted(str((told or {})['model']))})" in said[0]
    assert base_doubts(GenerateOptions(model=model)) == []
