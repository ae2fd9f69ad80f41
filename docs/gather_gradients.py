"""Measure how hard the distillation's loss pulls at each segment, for docs/data/mlcd-gradients.json and docs/method.md.

evdit prepare-data --source shapes --count 64 -o data/shapes
python docs/gather_gradients.py data/shapes 16

The networks are the teacher `shapes`, which tells v, and it behind an exact change of variables: eps on its own noise
schedule, flow on that schedule scaled by 1 / (a + s). At the start of a distillation the student is the teacher.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from script import folder_at, run
from torch import Tensor

from vdit_cli.artifacts.receipt import this_machine
from vdit_cli.backbones.base import Backbone, TextStates
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.data.shards import open_data
from vdit_cli.diffusion.consistency import clipped_weight, x0_weight
from vdit_cli.diffusion.milestones import Milestones, signal_and_noise
from vdit_cli.diffusion.prediction import target, x0_from
from vdit_cli.diffusion.schedules import NoiseSchedule
from vdit_cli.distillation.mlcd import Networks, Predict, guided, mlcd_losses
from vdit_cli.errors import EvditError

DATA = Path(__file__).parent / "data" / "mlcd-gradients.json"
STEPS, POINTS = 4, 25
WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "min(SNR + 1, 5)": lambda kind, a, s: clipped_weight(a, s),
    "that times s / gain": x0_weight,
}


def changed(kind: str, network: Predict, own: NoiseSchedule, schedule: NoiseSchedule) -> Predict:
    """A network that tells v on the schedule `own` as one of `kind` on `schedule`, which is `own` up to a scale."""

    def predict(x: Tensor, t_B: Tensor) -> Tensor:
        (a, s), (alpha, sigma) = (signal_and_noise(each, t_B) for each in (own, schedule))
        x_own = (x * (a / alpha)).to(x)
        x0 = x0_from("v", network(x_own, t_B), x_own, a.to(x), s.to(x))
        return target(kind, x0, (x - alpha.to(x) * x0) / sigma.to(x), alpha.to(x), sigma.to(x))

    return predict


def norms_of(
    kind: str, networks: Networks, own: NoiseSchedule, x0: Tensor, j: int, weights: list[Tensor]
) -> dict[str, tuple[float, float]]:
    """By weight: the norms of the gradient of one clip's loss at grid point j, by the output and by the weights.

    The second is the output's gradient put on the teacher's own output, v: it stands for a network that answers to its
    weights as the teacher does. Behind the change of variables to eps they are answered a times as much.
    """
    total = own.alphas + own.sigmas
    schedule = NoiseSchedule(own.alphas / total, own.sigmas / total) if kind == "flow" else own
    times = Milestones(STEPS, POINTS).at(torch.tensor([j]))
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(j))
    held: list[tuple[Tensor, Tensor]] = []

    def student(x: Tensor, t_B: Tensor) -> Tensor:
        a, alpha = (signal_and_noise(each, t_B)[0] for each in (own, schedule))
        v = networks.student((x * (a / alpha)).to(x), t_B)
        held.append((v, changed(kind, lambda *_: v, own, schedule)(x, t_B)))
        return held[-1][1]

    others = (changed(kind, each, own, schedule) for each in (networks.target, networks.teacher))
    loss = mlcd_losses(Networks(student, *others), kind, schedule, x0, eps, times)["loss"].mean()
    v, output = held[-1]
    (pull,) = torch.autograd.grad(loss, output, retain_graph=True)
    by_weights = torch.autograd.grad(v, weights, pull)
    # Times the root of the count the norm at the output is that of weight x gain, where slopes are 1.
    norms = norm((pull,)) * pull.numel() ** 0.5, norm(by_weights)
    a, s = signal_and_noise(schedule, times[0])
    scales = {name: (weight(kind, a, s) / x0_weight(kind, a, s)).item() for name, weight in WEIGHTS.items()}
    return {name: (norms[0] * scale, norms[1] * scale) for name, scale in scales.items()}


def norm(gradients: Sequence[Tensor]) -> float:
    """The norm of all of them together."""
    return torch.stack([each.square().sum() for each in gradients]).sum().sqrt().item()


def measure(folder: Path, count: int, model: str = "shapes") -> dict[str, Any]:
    """The file's content, from the first `count` clips of prepared data; the model must tell v."""
    teacher = open_backbone(find_source(model), device="cpu")
    own = NoiseSchedule.from_config(teacher.scheduler_config)
    clips = open_data(folder)
    if not 1 <= count <= len(clips):
        raise EvditError(f"{count} clips of {folder}: it holds {len(clips)}", where=str(count))
    null = TextStates(*clips.null_text())
    found: dict[tuple[str, int], list[dict[str, tuple[float, float]]]] = {}
    with teacher.resident("transformer"):
        weights = list(teacher.transformer.parameters())  # type: ignore[attr-defined]
        for clip, segment in product(range(count), range(STEPS)):
            text = TextStates(*clips.text([clip]))
            both = TextStates(*(torch.cat(pair) for pair in zip(fields(text), fields(null), strict=True)))
            student = partial(told, teacher, text)
            networks = Networks(student, student, guided(partial(told, teacher, both), teacher.defaults.guidance))
            for kind in ("eps", "v", "flow"):
                each = norms_of(
                    kind, networks, own, clips.latents([clip]), 1 + segment * POINTS + clip * POINTS // count, weights
                )
                found.setdefault((kind, segment), []).append(each)
    machine = this_machine()
    return {
        "machine": f"{machine.cores} CPU cores, torch {torch.__version__}, {datetime.date.today().isoformat()}",
        "command": f"python docs/gather_gradients.py data/shapes {count}",
        "tables": {at: table(found, place) for place, at in enumerate(("output", "weights"))},
    }


def told(backbone: Backbone, text: TextStates, x: Tensor, t_B: Tensor) -> Tensor:
    """What the network tells for these texts."""
    return backbone.denoise(x, t_B, text)


def fields(text: TextStates) -> tuple[Tensor, Tensor]:
    """States and mask."""
    return text.states_BLC, text.mask_BL


def table(found: dict[tuple[str, int], list[dict[str, tuple[float, float]]]], place: int) -> dict[str, Any]:
    """A row a weight and kind: the median over the clips of each segment, noisiest first, and the largest of them."""
    names = [str(time) for time in Milestones(STEPS).sampled]
    columns = [["prediction", "kind", ""], ["weight", "weight", ""]]
    columns += [[f"from t = {name}", name, ".3g"] for name in names] + [["largest / median", "ratio", ".2f"]]
    rows = []
    for weight, kind in product(WEIGHTS, ("eps", "v", "flow")):
        segments = [found[kind, segment] for segment in reversed(range(STEPS))]
        values = [statistics.median(each[weight][place] for each in clips) for clips in segments]
        ratio = max(values) / statistics.median(values)
        rows.append({"kind": kind, "weight": weight, "ratio": ratio, **dict(zip(names, values, strict=True))})
    return {"columns": columns, "rows": rows}


def main(arguments: Sequence[str]) -> None:
    """Measure on the first clips of a folder and write docs/data/mlcd-gradients.json. Raises EvditError."""
    if len(arguments) != 2 or not arguments[1].isdecimal():
        raise EvditError(
            "the script takes a folder of prepared data and a number of clips",
            where=" ".join(arguments) or None,
            next_steps=["python docs/gather_gradients.py data/shapes 16"],
        )
    content = measure(folder_at(arguments[0]), int(arguments[1]))
    DATA.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run(main))
