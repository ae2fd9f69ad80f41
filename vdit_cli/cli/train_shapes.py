"""`evdit train-shapes`: the embedded model from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import AllowChanged, Config, Json, Set, Verbose, knob_option, path_option
from vdit_cli.knobs import origins_told
from vdit_cli.recipe import load

EXAMPLE = """evdit train-shapes --config recipes/train-shapes.yaml -o runs/shapes
evdit generate "a small blue ring bouncing over a navy background" --model runs/shapes -o ring.mp4"""


def command(
    output: Annotated[
        Path | None,
        path_option(
            "-o",
            "--output",
            help="The run's folder, in which the same command goes on. [default: runs/<date>-train-shapes-shapes]",
        ),
    ] = None,
    seed: Annotated[int | None, knob_option("train_shapes.seed")] = None,
    device: Annotated[str | None, knob_option("train_shapes.device")] = None,
    config: Config = None,
    sets: Set = None,
    allow_changed: AllowChanged = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train the embedded model `shapes` from scratch on rendered clips: about 25 minutes on one large GPU.

    Ctrl-C once saves and stops; the same command on the same folder goes on exactly there.
    """
    recipe = load(config, sets or (), {"train_shapes.seed": seed, "train_shapes.device": device})

    from vdit_cli.distillation.train_shapes import train_shapes

    with Console(verbose=verbose) as console, origins_told(recipe.train_shapes):
        folder = train_shapes(recipe.train_shapes, output, console, allow_changed)
    if as_json:
        console.json("evdit.train-shapes/1", {"model": str(folder)})
    else:
        console.data(str(folder))
