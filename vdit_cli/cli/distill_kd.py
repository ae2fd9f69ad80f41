"""`evdit distill-kd`: a student that is right under its masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import AllowChanged, Config, Gpus, Json, Set, Verbose, knob_option, path_option
from vdit_cli.knobs import origins_told
from vdit_cli.recipe import load

EXAMPLE = """evdit distill-kd --checkpoint runs/four --masks runs/masks --data data/shapes -o runs/sparse
evdit generate "a small blue ring bouncing over a navy background" --checkpoint runs/sparse -o ring.mp4"""


def command(
    model: Annotated[str | None, knob_option("distill_kd.model")] = None,
    text_encoder: Annotated[str | None, knob_option("distill_kd.text_encoder")] = None,
    checkpoint: Annotated[str | None, knob_option("distill_kd.checkpoint", metavar="RUN", unset="none")] = None,
    masks: Annotated[str | None, knob_option("distill_kd.masks", metavar="PLAN|RUN|k:F-k|auto")] = None,
    allow_other_weights: Annotated[bool | None, knob_option("distill_kd.allow_other_weights")] = None,
    data: Annotated[str | None, knob_option("distill_kd.data", metavar="DATA", unset="it must be given")] = None,
    output: Annotated[
        Path | None,
        path_option(
            "-o",
            "--output",
            help="The run's folder, in which the same command goes on. [default: runs/<date>-distill-kd-<model>]",
        ),
    ] = None,
    lora_rank: Annotated[int | None, knob_option("distill_kd.lora_rank")] = None,
    seed: Annotated[int | None, knob_option("distill_kd.seed")] = None,
    device: Annotated[str | None, knob_option("distill_kd.device")] = None,
    gpus: Gpus = None,
    config: Config = None,
    sets: Set = None,
    allow_changed: AllowChanged = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train a student to make under its masks what it makes with full attention.

    It comes before or after `distill-mlcd`. Ctrl-C once saves and stops; the same command on the same folder goes on
    exactly there. The result is a checkpoint for `evdit generate`, plan and sampler inside. With --gpus N, or under
    torchrun or `accelerate launch`, several processes share the work; any other number of them may go on with it.
    """
    given = locals()
    beside = ("output", "gpus", "config", "sets", "allow_changed", "verbose", "as_json")
    flags = {f"distill_kd.{name}": value for name, value in given.items() if name not in beside}
    recipe = load(config, sets or (), flags)

    from vdit_cli.distillation.distill_kd import distill_kd
    from vdit_cli.parallel.launch import launched

    with origins_told(recipe.distill_kd):
        if launched(gpus, recipe.distill_kd.device):
            return
        with Console(verbose=verbose) as console:
            folder = distill_kd(recipe.distill_kd, output, console, allow_changed)
            console.end_stage()
            if as_json:
                console.json("evdit.distill-kd/1", {"student": str(folder)})
            else:
                console.data(str(folder))
