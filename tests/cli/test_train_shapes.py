"""`evdit train-shapes` at a tiny size: the run, its resumption, its model in `evdit generate`, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.tiny_pipeline import copied
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.cli.app import main
from vdit_cli.errors import INTERRUPTED, USAGE, Interrupted, quoted

TINY = [
    f"train_shapes.{key}"
    for key in (
        "vae.hidden_size=8",
        "vae.iterations=1",
        "vae.batch_size=1",
        "vae.measured_clips=2",
        "transformer.layers=2",
        "transformer.heads=2",
        "transformer.head_dim=24",
        "text.width=24",
        "text.layers=1",
        "text.iterations=4",
        "text.batch_size=2",
        "transformer.iterations=3",
        "transformer.clips=4",
        "transformer.fresh_clips=2",
        "transformer.fresh_every=2",
        "transformer.batch_size=2",
    )
]
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "train-shapes.yaml"
SETS = [word for setting in TINY for word in ("--set", setting)]


def test_a_tiny_training_makes_a_model_that_generates(tmp_path: Path, evdit):
    """The recipe at a tiny size trains; the same again is done already; other values are refused; generate takes it."""
    command = ["train-shapes", "-o", str(tmp_path / "run"), "--config", str(RECIPE), "--device", "cpu", *SETS]
    code, out, err = evdit(*command)
    assert code == 0, err
    model = tmp_path / "run" / "model"
    assert out.strip() == str(model)
    assert "train_shapes.vae.hidden_size: 8  # --set" in err
    run = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (run["state"], run["command"]) == ("done", "train-shapes")
    with safe_open(model / "transformer" / "diffusion_pytorch_model.safetensors", "np") as weights:
        assert weights.get_tensor("proj_out.weight").dtype == "float16"
    receipt = Receipt.read(tmp_path / "run" / "receipt.json")
    assert receipt.asked["transformer.layers"] == 2 and receipt.seconds.keys() == {"vae", "text", "transformer"}
    assert receipt.peak_memory_bytes > 1e8 and receipt.ran.device == "cpu"
    whole = {path.name for path in (tmp_path / "run").iterdir()}
    assert whole == {"run.json", "receipt.json", "README.md", ".lock", "vae", "text", "transformer", "model"}
    assert "train-shapes, shapes" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "hidden_size: 8" in card and "| text encoder | 4 | 2 |" in card and "| transformer | 3 | 2 |" in card
    facts = json.loads((model / "training.json").read_text(encoding="utf-8"))["transformer"]
    assert list(facts["errors"]) == ["20", "49", "99", "249", "499", "749"] and "warning" not in err
    assert f"error of v {facts['errors']['20']:.3f} at t = 20, " in err
    head = "| t | 20 | 49 | 99 | 249 | 499 | 749 |\n|---|---|---|---|---|---|---|\n"
    assert f"{head}| error | {facts['errors']['20']:.3f} |" in card

    code, _, err = evdit(*command)
    assert code == 0 and "is done already" in err
    code, _, err = evdit(*command, "--seed", "1")
    assert code == 2 and "was made by another recipe: seed: was 0, is 1" in err
    assert "--allow-changed" not in err
    before = (tmp_path / "run" / "run.json").read_bytes()
    code, out, err = evdit(*command, "--seed", "1", "--allow-changed")
    assert (code, out) == (2, "") and "is finished, with other values: seed: was 0, is 1" in err
    assert (tmp_path / "run" / "run.json").read_bytes() == before

    weights = tmp_path / "run" / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    digest = weights_digest([weights])
    for damaged in (weights, tmp_path / "run" / "text" / "finished" / "model.safetensors"):
        damaged.write_bytes(damaged.read_bytes()[:-9])
        code, out, err = evdit(*command)
        assert (code, out) == (0, f"{model}\n") and "is done already" not in err
        assert weights_digest([weights]) == digest

    code, out, err = evdit(
        "generate",
        "a large red circle",
        "--model",
        str(tmp_path / "run"),
        "--steps",
        "2",
        "-o",
        "v.mp4",
        "--device",
        "cpu",
    )
    assert code == 0, err
    assert out.strip() == "v.mp4" and Path("v.mp4").stat().st_size > 1000


@pytest.fixture(scope="module")
def with_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted before its text encoder."""
    run = tmp_path_factory.mktemp("with-vae") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vdit_cli.distillation.train_shapes.train_text", pressed)
        assert main(["train-shapes", "-o", str(run), "--device", "cpu", *SETS]) == INTERRUPTED
    return run


def test_the_card_tells_what_changed_on_the_way(with_vae: Path, tmp_path: Path, evdit):
    """At the part and iteration that it took effect in."""
    command = ["train-shapes", "-o", str(copied(with_vae, tmp_path / "run")), "--device", "cpu", *SETS]
    code, _, err = evdit(*command, "--set", "train_shapes.text.learning_rate=0.5", "--allow-changed")
    assert code == 0, err
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert "changed to the recipe's:\n\n- `text.learning_rate` from 0.001 to 0.5 at iteration 0 of the text\n" in card


def test_times_that_are_lost_are_told(with_vae: Path, tmp_path: Path, evdit, monkeypatch: pytest.MonkeyPatch):
    """Of a finished training, before anybody makes students of it."""
    errors = {20: 0.9, 49: 0.7, 99: 0.03, 249: 0.02, 499: 0.03, 749: 0.4}
    monkeypatch.setattr("vdit_cli.distillation.train_shapes.errors_by_time", lambda *given: errors)
    code, _, err = evdit("train-shapes", "-o", str(copied(with_vae, tmp_path / "run")), "--device", "cpu", *SETS)
    assert code == 0 and "warning: the transformer does not know t = 20, 49: its time modulation has jumped" in err


def pressed(*given: object) -> None:
    """Ctrl-C."""
    raise Interrupted("stopped")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("transformer.clips=100", "--set train_shapes.transformer.clips=128"),
        ("transformer.head_dim=50", "--set train_shapes.transformer.head_dim=54"),
        ("text.width=100", "--set train_shapes.text.width=102"),
        ("vae.hidden_size=6", "--set train_shapes.vae.hidden_size=8  or  --set train_shapes.vae.norm_groups=2"),
        ("vae.norm_groups=12", "--set train_shapes.vae.hidden_size=36  or  --set train_shapes.vae.norm_groups=4"),
        ("vae.hidden_size_mult=[1,2,3]", '--set "train_shapes.vae.hidden_size_mult=[1,2,3,3]"'),
        ("vae.hidden_size_mult=[1,2,3,0]", '--set "train_shapes.vae.hidden_size_mult=[1,2,3,3]"'),
        ("vae.iterations=0", "at least 1"),
        ("vae.learning_rate=nan", "nan"),
        ("vae.iteration=5", "iterations"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_is_made(evdit, setting: str, told: str):
    """Exit 2, the rule and what would fit."""
    code, _, err = evdit("train-shapes", "-o", "run", "--set", f"train_shapes.{setting}")
    assert code == 2 and told in err and not Path("run").exists()
    assert told[:2] != "--" or f"  from:  --set {quoted(f'train_shapes.{setting}')}\n" in err


@pytest.mark.parametrize("length", [1, 18, 513, 10**6])
def test_a_length_that_no_caption_fits_in_is_refused_before_anything_is_trained(evdit, tmp_path: Path, length: int):
    """Or that no memory does."""
    setting = f"train_shapes.text.length={length}"
    code, _, err = evdit("train-shapes", "-o", "run", *SETS, "--set", setting, "--device", "cpu")
    assert code == USAGE and f"error: length is {length}: the longest caption has 19 tokens" in err
    assert f"from:  --set {setting}" in err and not Path("run").exists()
