"""Gather the figures of a training of `shapes` into docs/data/shapes.json, from which docs/results.md has its tables.

evdit train-shapes --config recipes/train-shapes.yaml -o runs/shapes
for set in shapes-held-out shapes-held-out-two-objects; do
  evdit generate --prompts-file recipes/prompts/$set.txt --model runs/shapes --batch 64 -o runs/$set
  evdit score runs/$set --json > runs/$set.json
done
python docs/gather_shapes.py runs/shapes runs/shapes-held-out.json runs/shapes-held-out-two-objects.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "shapes.json"


def gather(training: dict[str, Any], one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """The file's content from a run's training.json and from `evdit score --json` of one- and two-object prompts."""
    vae, transformer, psnr = training["vae"], training["transformer"], training["vae"]["psnr"]
    parts = [
        {"part": "VAE", **{key: vae[key] for key in ("iterations", "batch", "seconds", "loss")}},
        {"part": "transformer, text encoder", **{key: value for key, value in transformer.items() if key != "part"}},
    ]
    checks = [
        {"check": check, "one": _share(one, check), "two": _share(two, check)}
        for check in dict.fromkeys([*one["accuracy"], *two["accuracy"]])
    ]
    checks.append(
        {"check": "unreadable", "one": one["unreadable"] / one["clips"], "two": two["unreadable"] / two["clips"]}
    )
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
                "rows": parts,
            },
            "vae": {
                "columns": [["unseen clips", "clips", ""], ["PSNR, dB", "psnr", ".2f"]],
                "rows": [{"clips": name, "psnr": value} for name, value in psnr.items()],
            },
            "accuracy": {
                "columns": [
                    ["right", "check", ""],
                    [f"one object ({one['clips']})", "one", ".3f"],
                    [f"two objects ({two['clips']})", "two", ".3f"],
                ],
                "rows": checks,
            },
        },
    }


def _share(score: dict[str, Any], check: str) -> float | None:
    found = score["accuracy"].get(check)
    return found["share"] if found else None


def main(arguments: list[str]) -> int:
    """Read the run and the two scores, write docs/data/shapes.json."""
    run, *scores = map(Path, arguments)
    training = json.loads((run / "model" / "training.json").read_text(encoding="utf-8"))
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in scores)
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(gather(training, one, two), indent=1) + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
