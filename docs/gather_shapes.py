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
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "shapes.json"
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
        {"check": measure, **{name: score["measures"][measure] for name, score in found.items()}}
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


def main(arguments: list[str]) -> int:
    """Read the model's folder and the folder of scores, write docs/data/shapes.json."""
    model, folder = map(Path, arguments)
    training, index = (
        json.loads((model / name).read_text(encoding="utf-8")) for name in ("training.json", "model_index.json")
    )
    first, _ = SETS["one"]
    strengths = {path.stem.removeprefix(f"{first}-") for path in folder.glob(f"{first}-*.json")}
    scores: Scores = {
        float(strength): {
            name: json.loads((folder / f"{file}-{strength}.json").read_text(encoding="utf-8"))
            for name, (file, _) in SETS.items()
        }
        for strength in strengths
        if strength.replace(".", "").isdigit()
    }
    content = gather(training, scores, index["evdit"]["defaults"]["guidance"])
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
