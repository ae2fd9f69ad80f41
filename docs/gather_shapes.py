"""Gather the figures of `shapes` into docs/data/shapes.json, from which docs/results.md and the card have their tables.

evdit train-shapes --config recipes/train-shapes.yaml -o runs/shapes
mkdir -p runs/scores
for g in 2 2.5 3 4; do for set in shapes-held-out shapes-held-out-two-objects shapes-partial; do
  evdit generate --prompts-file recipes/prompts/$set.txt --model runs/shapes --batch 64 --guidance $g -o runs/$set-$g
  evdit score runs/$set-$g --json > runs/scores/$set-$g.json
done; done
python docs/gather_shapes.py runs/shapes/model runs/scores
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from script import fitting, folder_at, read_json, run

from vdit_cli.errors import EvditError

DATA = Path(__file__).parent / "data" / "shapes.json"
PROMPTS = Path(__file__).parents[1] / "recipes" / "prompts"
CALLED = {"everything": "everything asked, and nothing else"}
PARTS = {"vae": "VAE", "text": "text encoder", "transformer": "transformer"}
SETS = {
    "one": ("shapes-held-out", "one object"),
    "two": ("shapes-held-out-two-objects", "two objects"),
    "partial": ("shapes-partial", "parts left out"),
}
Scores = dict[float, dict[str, dict[str, Any]]]
"""What `evdit score --json` said of each set of prompts, by guidance."""


def gather(training: dict[str, Any], scores: Scores, guidance: float) -> dict[str, Any]:
    """The file's content from a model's training.json and its scores; `guidance` is the model's default."""
    found = scores[guidance]
    checks = [
        {"check": CALLED.get(check, check), **{name: share(score, check) for name, score in found.items()}}
        for check in dict.fromkeys(check for score in found.values() for check in score["accuracy"])
    ]
    checks.append({"check": "unreadable", **{name: unreadable(score) for name, score in found.items()}})
    checks += [
        {"check": measure, **{name: score["measures"].get(measure) for name, score in found.items()}}
        for measure in found["one"]["measures"]
    ]
    titles = {name: f"{SETS[name][1]} ({score['clips']})" for name, score in found.items()}
    return {
        "machine": f"{training['machine']}, torch {training['torch']}, {training['date']}",
        "command": "the lines at the top of docs/gather_shapes.py",
        "tables": {
            "training": {
                "columns": [
                    ["part", "part", ""],
                    ["iterations", "iterations", ""],
                    ["batch", "batch", ""],
                    ["seconds", "seconds", ".0f"],
                    ["final loss", "loss", ".4f"],
                ],
                "rows": [{"part": part, **training[key]} for key, part in PARTS.items()],
            },
            "vae": {
                "columns": [["unseen clips", "clips", ""], ["PSNR, dB", "psnr", ".2f"]],
                "rows": [{"clips": name, "psnr": value} for name, value in training["vae"]["psnr"].items()],
            },
            "accuracy": {
                "columns": [["right", "check", ""], *([title, name, ".3f"] for name, title in titles.items())],
                "rows": checks,
            },
            "guidance": {
                "columns": [
                    ["guidance", "guidance", "g"],
                    [f"{titles['one']}: all five", "one.all five", ".3f"],
                    ["everything", "one.everything", ".3f"],
                    [f"{titles['two']}: all five", "two.all five", ".3f"],
                    ["second object", "two.second object", ".3f"],
                    ["everything", "two.everything", ".3f"],
                    [f"{titles['partial']}: everything", "partial.everything", ".3f"],
                ],
                "rows": [
                    {"guidance": strength, **{name: shares(score) for name, score in scores[strength].items()}}
                    for strength in sorted(scores)
                ],
            },
        },
    }


def share(score: dict[str, Any], check: str) -> float | None:
    """The share of clips that are right in a check; None where it was never made."""
    return shares(score).get(check)


def shares(score: dict[str, Any]) -> dict[str, float]:
    """The share of right clips by check."""
    return {check: found["share"] for check, found in score["accuracy"].items()}


def unreadable(score: dict[str, Any]) -> float:
    """The share of clips that show no scene of the world."""
    return score["unreadable"] / score["clips"]


def read_scores(folder: Path) -> Scores:
    """The scores of every guidance that a file of the first set is there for. Raises EvditError for others' videos."""
    scores: Scores = {}
    for path in sorted(folder.glob(f"{SETS['one'][0]}-*.json")):
        strength = path.stem.removeprefix(f"{SETS['one'][0]}-")
        if not strength.replace(".", "", 1).isdigit():
            continue
        if float(strength) in scores:
            raise EvditError(f"guidance {float(strength):g} has two files in {folder}", where=str(path))
        scores[float(strength)] = {
            name: read_score(folder / f"{file}-{strength}.json", file) for name, (file, _) in SETS.items()
        }
    return scores


def read_score(path: Path, prompts: str) -> dict[str, Any]:
    """One score. Raises EvditError where its videos are not those of the prompts, one each in their order."""
    score = read_json(path)
    wanted = (PROMPTS / f"{prompts}.txt").read_text(encoding="utf-8").splitlines()
    videos = score.get("videos")
    told = [each.get("prompt") for each in videos if isinstance(each, dict)] if isinstance(videos, list) else []
    if told != wanted:
        raise EvditError(f"{path} is no score of the {len(wanted)} prompts of {prompts}.txt", where=str(path))
    with fitting(path):
        shares(score), unreadable(score), score["measures"].get("")
    return score


def main(arguments: Sequence[str]) -> None:
    """Read the model's folder and the folder of scores, write docs/data/shapes.json. Raises EvditError."""
    if len(arguments) != 2:
        raise EvditError(
            f"the script takes two folders, MODEL and SCORES: {len(arguments)} words were given",
            next_steps=["python docs/gather_shapes.py runs/shapes/model runs/scores"],
        )
    model, folder = map(folder_at, arguments)
    training, index = (read_json(model / name) for name in ("training.json", "model_index.json"))
    scores = read_scores(folder)
    with fitting(model / "model_index.json"):
        default = float(index["evdit"]["defaults"]["guidance"])
    if default not in scores:
        raise EvditError(f"{folder} holds no scores at guidance {default:g}, the default", where=str(folder))
    with fitting(model / "training.json"):
        content = gather(training, scores, default)
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(run(main))
