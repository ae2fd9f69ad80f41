"""Gather the figures of `shapes` into docs/data/shapes.json, from which docs/results.md and the card have their tables.

evdit train-shapes --config recipes/train-shapes.yaml -o runs/shapes
mkdir -p runs/scores
for g in 2 2.5 3 4; do for set in shapes-held-out shapes-held-out-two-objects; do
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
PARTS = {"vae": "VAE", "text": "text encoder", "transformer": "transformer"}
ONE, TWO = "shapes-held-out", "shapes-held-out-two-objects"
Scores = dict[float, tuple[dict[str, Any], dict[str, Any]]]
"""What `evdit score --json` said of one- and of two-object prompts, by guidance."""


def gather(training: dict[str, Any], scores: Scores, guidance: float) -> dict[str, Any]:
    """The file's content from a model's training.json and its scores; `guidance` is the model's default."""
    one, two = scores[guidance]
    checks = [
        {"check": check, "one": share(one, check), "two": share(two, check)}
        for check in dict.fromkeys([*one["accuracy"], *two["accuracy"]])
        if check != "everything"
    ]
    checks.append({"check": "everything asked, and nothing else", "one": everything(one), "two": everything(two)})
    checks.append({"check": "unreadable", "one": unreadable(one), "two": unreadable(two)})
    checks += [{"check": name, "one": one["measures"][name], "two": two["measures"][name]} for name in one["measures"]]
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
                "columns": [
                    ["right", "check", ""],
                    [f"one object ({one['clips']})", "one", ".3f"],
                    [f"two objects ({two['clips']})", "two", ".3f"],
                ],
                "rows": checks,
            },
            "guidance": {
                "columns": [
                    ["guidance", "guidance", "g"],
                    [f"one object ({one['clips']}): all five", "one.all five", ".3f"],
                    ["everything", "one.everything", ".3f"],
                    [f"two objects ({two['clips']}): all five", "two.all five", ".3f"],
                    ["second object", "two.second object", ".3f"],
                    ["everything", "two.everything", ".3f"],
                ],
                "rows": [
                    {"guidance": strength, "one": shares(scores[strength][0]), "two": shares(scores[strength][1])}
                    for strength in sorted(scores)
                ],
            },
        },
    }


def share(score: dict[str, Any], check: str) -> float | None:
    """The share of clips that are right in a check; None where it was never made."""
    return shares(score).get(check)


def shares(score: dict[str, Any]) -> dict[str, float]:
    """The share of right clips by check, and of those that are right in everything."""
    return {check: found["share"] for check, found in score["accuracy"].items()} | {"everything": everything(score)}


def everything(score: dict[str, Any]) -> float:
    """The share of clips that are right in every check that was made of them."""
    return sum(bool(clip["right"]) and all(clip["right"].values()) for clip in score["videos"]) / score["clips"]


def unreadable(score: dict[str, Any]) -> float:
    """The share of clips that show no scene of the world."""
    return score["unreadable"] / score["clips"]


def main(arguments: list[str]) -> int:
    """Read the model's folder and the folder of scores, write docs/data/shapes.json."""
    model, folder = map(Path, arguments)
    training, index = (
        json.loads((model / name).read_text(encoding="utf-8")) for name in ("training.json", "model_index.json")
    )
    strengths = [float(path.stem.removeprefix(f"{TWO}-")) for path in folder.glob(f"{TWO}-*.json")]
    scores: Scores = {}
    for strength in strengths:
        files = [folder / f"{name}-{strength:g}.json" for name in (ONE, TWO)]
        one, two = (json.loads(path.read_text(encoding="utf-8")) for path in files)
        scores[strength] = one, two
    content = gather(training, scores, index["evdit"]["defaults"]["guidance"])
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
