"""The commands that faults are tried on: what each is asked, and what of its result is the same every time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.test_train_shapes import TINY as TINY_SHAPES
from tests.distillation.prepared import write_data
from tests.tiny_pipeline import write_pipeline
from vdit_cli.artifacts.digest import weights_digest
from vdit_cli.artifacts.video_file import read_video
from vdit_cli.tiles.architecture import Architecture
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan

PROMPTS = ("a large red circle moving right", "a small blue square over black")


@dataclass(frozen=True)
class Subject:
    """A command: its words but for the place, whether it makes a run, and `told`, what two good results share.

    `other` are words that ask for something else in the same place. `overwrites`: it has the flag --overwrite.
    """

    words: tuple[str, ...]
    told: Callable[[Path], Any]
    is_run: bool = True
    suffix: str = ""
    other: tuple[str, ...] = ()
    overwrites: bool = False

    def command(self, place: str, *more: str) -> list[str]:
        """The command line for a place."""
        return [*self.words, "-o", place, *more]


def pixels(path: Path) -> str:
    """A digest of the frames of a video."""
    frames, rate = read_video(path)
    return hashlib.sha256(frames.tobytes()).hexdigest() + f" {rate}"


def clip(path: Path) -> dict[str, Any]:
    """The frames of a video and what its receipt says was asked; the receipt must be this video's."""
    receipt = json.loads(path.with_name(path.stem + ".json").read_text(encoding="utf-8"))
    if path.is_file():
        assert receipt["output_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    return {"frames": pixels(path), "prompt": receipt["asked"]["prompt"], "seed": receipt["asked"]["seed"]}


def clips(run: Path) -> dict[str, Any]:
    """Every video of a run."""
    return {path.name: clip(path) for path in sorted(run.glob("[!.]*.mp4"))}


def weights(*folders: str) -> Callable[[Path], dict[str, str]]:
    """The digests of what was learnt in folders of a run."""
    return lambda run: {folder: weights_digest((run / folder).glob("*.safetensors")) for folder in folders}


def shards(run: Path) -> list[str]:
    """The digests of prepared data."""
    index = json.loads((run / "index.json").read_text(encoding="utf-8"))
    return [hashlib.sha256((run / shard["path"]).read_bytes()).hexdigest() for shard in index["shards"]]


def layers(run: Path) -> Any:
    """What an analysis found in each layer."""
    return json.loads((run / "analysis.json").read_text(encoding="utf-8"))["layers"]


def rows(run: Path) -> list[tuple[str, ...]]:
    """Which rows a benchmark has; their times are never the same."""
    tables = json.loads((run / "results.json").read_text(encoding="utf-8"))["tables"]
    told = [(name, str(row.get("mask") or row.get("plan"))) for name in tables for row in tables[name]["rows"]]
    return sorted(told)


def write_subjects(folder: Path) -> Mapping[str, Subject]:
    """The commands by name, with the tiny model, data and plan that they need in `folder`."""
    model = str(write_pipeline(folder / "model"))
    data = str(write_data(folder / "data", Path(model)))
    cpu = ("--device", "cpu")
    generate = ("generate", PROMPTS[0], "--model", model, "--steps", "2", *cpu)
    sets = [word for setting in TINY_SHAPES for word in ("--set", setting)]
    prepare = ("shard_clips=2", "previews=1")
    prepared = [word for setting in prepare for word in ("--set", f"prepare_data.{setting}")]
    small = ("--height", "32", "--width", "32")
    distill = ("iterations=4", "batch_size=2", "previews=1", "warmup=1", "log_every=1", "checkpoint_every=2")
    distilled, masked = (
        [word for setting in distill for word in ("--set", f"{section}.{setting}")]
        for section in ("distill_mlcd", "distill_kd")
    )
    attention = ("--latent-frames", "4", "--frame-tokens", "3", "--heads", "1", "--head-dim", "8", "--masks", "1:3")
    model_size = ("--layers", "1", "--heads", "1", "--head-dim", "6", "--frame-tokens", "4", "--latent-frames", "4")
    single = {
        kind: Subject(generate, clip, is_run=False, suffix=kind, other=("--seed", "5"), overwrites=True)
        for kind in (".mp4", ".gif", ".webp", "")
    }
    return {
        **{f"generate {kind or 'folder'}": subject for kind, subject in single.items()},
        "generate run": Subject(
            ("generate", *PROMPTS, "--num", "2", "--batch", "2", "--model", model, "--steps", "2", *cpu),
            clips,
            other=("--seed", "5"),
            overwrites=True,
        ),
        "analyze": Subject(
            ("analyze", "--model", model, "--num-prompts", "2", "--at", "0,1", "--seeds", "0,1", *cpu),
            layers,
            other=("--at", "0"),
        ),
        "bench attention": Subject(
            ("bench", "attention", *attention, "--kernels", "sdpa", "--seconds", "0", *cpu),
            rows,
            other=("--heads", "2"),
        ),
        "bench model": Subject(
            ("bench", "model", *model_size, "--seconds", "0", "--plans", "1:3", *cpu), rows, other=("--layers", "2")
        ),
        "prepare-data": Subject(
            ("prepare-data", "--model", model, "--source", "shapes", "--count", "5", *small, *cpu, *prepared),
            shards,
            other=("--seed", "5"),
        ),
        "distill-mlcd": Subject(
            ("distill-mlcd", "--model", model, "--data", data, "--steps", "4", *cpu, *distilled),
            weights("student"),
            other=("--seed", "5"),
        ),
        "distill-kd": Subject(
            ("distill-kd", "--model", model, "--data", data, "--masks", "1:2", *cpu, *masked),
            weights("student"),
            other=("--seed", "5"),
        ),
        "train-shapes": Subject(
            ("train-shapes", *cpu, *sets),
            weights("model/transformer", "model/vae", "model/text_encoder"),
            other=("--seed", "5"),
        ),
    }


def write_plan(file: Path) -> Path:
    """A plan whose seal an editor broke."""
    MaskPlan.uniform("tiny", VideoGrid(3, 2, 3), Architecture("OpenSoraT2V", 2, 2, 24), TileMask.parse("1:2", 3)).write(
        file
    )
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "digest": "0" * 64}), encoding="utf-8")
    return file
