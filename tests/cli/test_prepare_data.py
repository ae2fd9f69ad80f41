"""`evdit prepare-data` as a person types it: its recipe at a tiny size, what it prints and refuses, and a student."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_pipeline import write_pipeline, write_vae
from vdit_cli.data.shards import open_data

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "prepare-data.yaml"
SMALL = ("--height", "32", "--width", "32", "--device", "cpu")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A tiny pipeline."""
    return str(write_pipeline(tmp_path / "tiny"))


def test_the_recipe_makes_data_and_says_how_fast(model: str, evdit):
    """The recipe at a tiny size: summary and folder on stdout, progress on stderr; then it is done already."""
    command = ("prepare-data", "--config", str(RECIPE), "--model", model, *SMALL, "--count", "5", "-o", "data")
    code, out, err = evdit(*command)
    assert code == 0, err
    summary, folder = out.splitlines()
    assert summary.startswith("5 clips, 0.0 MB, ") and summary.endswith(" clips/s") and folder == "data"
    first, *lines = err.splitlines()
    assert first.startswith("tiny: 5 clips of shapes, 9 x 32 x 32, cpu float32")
    assert "prepare_data.count: 5  # --count 5" in lines and not any("dtype" in line for line in lines)
    assert "preparing clips: 0/5" in lines and any(line.startswith("preparing clips: 5/5 in") for line in lines)
    assert len(list(Path("data/previews").glob("*.mp4"))) == 4

    code, out, err = evdit(*command, "--json", "-v")
    told = json.loads(out)
    assert code == 0 and "data is done already" in err and 'prepare_data.dtype: "float32"  # default of tiny' in err
    assert (told["schema"], told["clips"], told["path"]) == ("evdit.prepare-data/1", 5, "data")
    assert told["clips_per_second"] is None and told["made_by"]["model"] == "tiny"
    assert told["cut_captions"] == 0 and len(open_data("data")) == 5
    code, _, err = evdit(*command, "--seed", "1")
    assert code == 2 and "was made by another recipe: seed: was 0, is 1" in err


def test_a_student_learns_from_what_was_prepared(model: str, evdit):
    """The folder goes into `evdit distill-mlcd` as it is; data of another VAE don't, and what to do works as it is."""
    prepare = ["prepare-data", "--model", model, "--source", "shapes", *SMALL, "--count", "4"]
    assert evdit(*prepare, "-o", "data")[0] == 0
    sets = ("iterations=1", "batch_size=2", "previews=0", "warmup=1")
    train = ["distill-mlcd", "--model", model, "--data", "data", "--steps", "2", "--device", "cpu"]
    train += [word for each in sets for word in ("--set", f"distill_mlcd.{each}")]
    code, out, err = evdit(*train, "-o", "run")
    assert code == 0 and Path(out.strip()).is_dir(), err
    write_vae(Path(model) / "vae", seed=1)
    code, _, err = evdit(*train, "-o", "another")
    assert code == 2 and "the data in data do not fit tiny: they were made with VAE" in err
    step = f"evdit prepare-data --model {model} --source shapes -o data-2"
    assert step in err
    assert evdit(*step.split()[1:], *SMALL, "--count", "2")[0] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--source", "shape"), "shapes"),
        ((), "--source shapes"),
        (("--source", "shapes", "--count", "0"), "at least 1"),
        (("--source", "shapes", "--set", "prepare_data.two_objects=1.5"), "at most 1"),
        (("--source", "shapes", *SMALL[:4], "-o", "taken"), "taken"),
        (("--source", "shapes", *SMALL[:4], "-o", "taken/data"), "can't be written"),
    ],
)
def test_refusals(model: str, evdit, words: tuple[str, ...], told: str):
    """Exit 2 in the house's form, before the work."""
    Path("taken").write_text("a file", encoding="utf-8")
    code, _, err = evdit("prepare-data", "--model", model, "--device", "cpu", *words)
    assert code == 2 and told in err and "error:" in err
