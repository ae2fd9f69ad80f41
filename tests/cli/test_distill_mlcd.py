"""`evdit distill-mlcd` as a person runs it: the recipe at a tiny size, again, changed, and the student in generate."""

from __future__ import annotations

import json
from pathlib import Path

from tests.distillation.prepared import write_data
from tests.tiny_pipeline import copied, write_pipeline
from vdit_cli.artifacts.digest import weights_digest

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "distill-mlcd.yaml"
TINY = ("iterations=3", "batch_size=2", "previews=0", "warmup=1", "log_every=1")


def test_the_recipe_makes_a_student_that_generates(tmp_path: Path, evdit):
    model = write_pipeline(tmp_path / "model")
    data = write_data(tmp_path / "data", model)
    command = ["distill-mlcd", "--model", str(model), "--data", str(data), "--config", str(RECIPE), "-o", "run"]
    command += ["--device", "cpu", *(word for key in TINY for word in ("--set", f"distill_mlcd.{key}"))]
    code, out, err = evdit(*command)
    assert code == 0, err
    assert out.strip() == str(Path("run") / "student")
    assert 'distill_mlcd.steps: "4"  # ' in err and "recipes/distill-mlcd.yaml" in err
    whole = {path.name for path in Path("run").iterdir()}
    assert whole == {"run.json", "receipt.json", "README.md", ".lock", "metrics.jsonl", "checkpoints", "student"}

    code, out, err = evdit(*command, "--json")
    assert code == 0 and "run is done already" in err
    assert json.loads(out) == {"schema": "evdit.distill-mlcd/1", "student": str(Path("run") / "student")}
    code, _, err = evdit(*command, "--seed", "1")
    assert code == 2 and "seed: was 0, is 1" in err and "--allow-changed" not in err
    before = Path("run/run.json").read_bytes()
    code, _, err = evdit(*command, "--seed", "3", "--allow-changed")
    assert code == 2 and "was begun with what can't change any more: seed: was 0, is 3" in err
    assert Path("run/run.json").read_bytes() == before

    weights = Path("run/student/diffusion_pytorch_model.safetensors")
    digest = weights_digest([weights])
    weights.write_bytes(weights.read_bytes()[:-9])
    Path("run/checkpoints/step-000003-mine").mkdir()
    code, out, err = evdit(*command)
    assert code == 0 and "is done already" not in err
    assert weights_digest([weights]) == digest and Path("run/checkpoints/step-000003-mine").is_dir()

    ask = ["generate", "a small red circle", "--model", str(model), "--checkpoint", "run", "--device", "cpu"]
    code, _, err = evdit(*ask, "-o", "v.mp4")
    assert code == 0 and "4 steps of milestones, guidance 1," in err, err
    ran = json.loads(Path("v.json").read_text(encoding="utf-8"))["ran"]
    assert (ran["timesteps"], ran["guidance"], ran["scheduler"]) == ([999, 679, 529, 279], 1.0, "milestones")
    code, _, err = evdit(*ask, "-o", "w.mp4", "--steps", "2")
    assert code == 0 and "trained for steps 4: steps 2 may look worse" in err and "was trained from" not in err
    ask[3] = str(copied(model, Path("other")))
    code, _, err = evdit(*ask, "-o", "x.mp4")
    assert code == 0 and f"warning: run was trained from the model {model}, and is put on other: VAE and" in err


def test_an_unknown_key_names_the_nearest(evdit):
    code, _, err = evdit("distill-mlcd", "--data", "data", "--set", "distill_mlcd.iteration=3")
    assert code == 2 and "distill_mlcd.iterations" in err


def test_data_are_asked_for(evdit):
    code, _, err = evdit("distill-mlcd", "--steps", "4")
    assert code == 2 and "--data" in err and "evdit prepare-data" in err
