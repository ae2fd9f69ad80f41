"""Measure how well `shapes` knows each time of the noise schedule, for docs/data/errors-by-time.json and results.md.

evdit prepare-data --source shapes --count 64 -o data/shapes
python docs/gather_errors_by_time.py data/shapes 16

The mean over all times, which training shows, hides a few that are not known: here each has a line of its own.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from script import folder_at, run
from torch import Tensor, nn
from torch.nn import functional

from vdit_cli.artifacts.receipt import this_machine
from vdit_cli.backbones.base import TextStates
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.data.shards import open_data
from vdit_cli.diffusion.prediction import target
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.errors import EvditError

DATA = Path(__file__).parent / "data" / "errors-by-time.json"
TIMES = (0, 20, 49, 60, 70, 75, 80, 99, 149, 249, 499, 749, 999)
COLUMNS = [
    ["t", "t", ""],
    ["noise", "noise", ".3f"],
    ["mean square error of v", "v", ".4f"],
    ["error of x0", "x0", ".4f"],
    ["largest query", "query", ".1f"],
    ["embedded time", "embedded", ".0f"],
]


@torch.no_grad()
def measure(folder: Path, count: int, model: str = "shapes", times: Sequence[int] = TIMES) -> dict[str, Any]:
    """The file's content, from the first `count` clips of prepared data; the model must tell v in float32.

    A row a time: the share of noise, the mean square error of v, the root mean square error of the clean latents that
    it means, the largest number in any query of any block, and the sum of what the modulation is made from, the SiLU of
    the embedded time, without signs: what a step of AdamW moves a scale by, in learning rates, where gradients agree.
    """
    teacher = open_backbone(find_source(model), device="cpu")
    schedule = NoiseSchedule.from_config(teacher.scheduler_config)
    clips = open_data(folder)
    if not 1 <= count <= len(clips):
        raise EvditError(f"{count} clips of {folder}: it holds {len(clips)}", where=str(count))
    x0, text = clips.latents(range(count)), TextStates(*clips.text(range(count)))
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    queries: list[float] = []
    sums: list[float] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        queries.append(output.abs().max().item())

    def note_sum(module: nn.Module, given: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        sums.append(functional.silu(output[1][0]).abs().sum().item())

    rows = []
    with teacher.resident("transformer"):
        for block in teacher.blocks():  # type: ignore[attr-defined]
            block.attn1.to_q.register_forward_hook(note)
        teacher.transformer.adaln_single.register_forward_hook(note_sum)  # type: ignore[attr-defined]
        for time in times:
            t_B = torch.full((count,), time)
            a, s = schedule.at(t_B, x0)
            queries.clear()
            error = teacher.denoise(a * x0 + s * eps, t_B, text) - target("v", x0, eps, a, s)
            found = {"v": error.square().mean().item(), "x0": (s * error).square().mean().sqrt().item()}
            rows.append(
                {"t": time, "noise": s.flatten()[0].item(), "query": max(queries), "embedded": sums[-1], **found}
            )
    return {
        "machine": f"{this_machine().cores} CPU cores, torch {torch.__version__}, {datetime.date.today().isoformat()}",
        "command": f"python docs/gather_errors_by_time.py data/shapes {count}"
        + (f" {model}" if model != "shapes" else ""),
        "tables": {"times": {"columns": COLUMNS, "rows": rows}},
    }


def main(arguments: Sequence[str]) -> None:
    """Measure on the first clips of a folder, the model `shapes` or the one that is named. Raises EvditError."""
    if len(arguments) not in (2, 3) or not arguments[1].isdecimal():
        raise EvditError(
            "the script takes a folder of prepared data, a number of clips and, at will, a model",
            where=" ".join(arguments) or None,
            next_steps=["python docs/gather_errors_by_time.py data/shapes 16"],
        )
    content = measure(folder_at(arguments[0]), int(arguments[1]), *arguments[2:])
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run(main))
