"""`evdit distill-mlcd`: a student of few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import AllowChanged, Config, Gpus, Json, Set, Verbose, knob_option, path_option
from vdit_cli.knobs import origins_told
from vdit_cli.recipe import load

EXAMPLE = """evdit distill-mlcd --data data/shapes --steps 4 --config recipes/distill-mlcd.yaml -o runs/four
evdit generate "a small blue ring bouncing over a navy background" --checkpoint runs/four -o ring.mp4"""


def command(
    model: Annotated[str | None, knob_option("distill_mlcd.model")] = None,
    text_encoder: Annotated[str | None, knob_option("distill_mlcd.text_encoder")] = None,
    checkpoint: Annotated[str | None, knob_option("distill_mlcd.checkpoint", metavar="RUN", unset="none")] = None,
    masks: Annotated[str | None, knob_option("distill_mlcd.masks", metavar="PLAN|RUN|k:F-k|auto|none")] = None,
    allow_other_weights: Annotated[bool | None, knob_option("distill_mlcd.allow_other_weights")] = None,
    data: Annotated[str | None, knob_option("distill_mlcd.data", metavar="DATA", unset="it must be given")] = None,
    output: Annotated[
        Path | None,
        path_option(
            "-o",
            "--output",
            help="The run's folder, in which the same command goes on. [default: runs/<date>-distill-mlcd-<model>]",
        ),
    ] = None,
    steps: Annotated[str | None, knob_option("distill_mlcd.steps", metavar="N|N,M,...")] = None,
    lora_rank: Annotated[int | None, knob_option("distill_mlcd.lora_rank")] = None,
    seed: Annotated[int | None, knob_option("distill_mlcd.seed")] = None,
    device: Annotated[str | None, knob_option("distill_mlcd.device")] = None,
    gpus: Gpus = None,
    config: Config = None,
    sets: Set = None,
    allow_changed: AllowChanged = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train a student that needs few steps, from a model and prepared data.

    Ctrl-C once saves and stops; the same command on the same folder goes on exactly there. The result is a checkpoint
    for `evdit generate`, its sampler inside. With --gpus N, or under torchrun or `accelerate launch`, several processes
    share the work; any other number of them may go on with it.
    """
    given = locals()
    beside = ("output", "gpus", "config", "sets", "allow_changed", "verbose", "as_json")
    flags = {f"distill_mlcd.{name}": value for name, value in given.items() if name not in beside}
    recipe = load(config, sets or (), flags)

    from vdit_cli.distillation.distill_mlcd import distill_mlcd
    from vdit_cli.parallel.launch import launched

    with origins_told(recipe.distill_mlcd):
        if launched(gpus, recipe.distill_mlcd.device):
            return
        with Console(verbose=verbose) as console:
            folder = distill_mlcd(recipe.distill_mlcd, output, console, allow_changed)
            console.end_stage()
            if as_json:
                console.json("evdit.distill-mlcd/1", {"student": str(folder)})
            else:
                console.data(str(folder))
