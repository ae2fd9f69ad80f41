"""`evdit prepare-data`: clips and captions to data for training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import Config, Json, Set, Verbose, knob_option, path_option
from vdit_cli.knobs import origins_told
from vdit_cli.recipe import load

EXAMPLE = """evdit prepare-data --source shapes --count 2000 -o data/shapes
evdit distill-mlcd --data data/shapes --steps 4 --config recipes/distill-mlcd.yaml -o runs/four"""


def command(
    model: Annotated[str | None, knob_option("prepare_data.model")] = None,
    text_encoder: Annotated[str | None, knob_option("prepare_data.text_encoder")] = None,
    source: Annotated[str | None, knob_option("prepare_data.source", unset="it must be given")] = None,
    output: Annotated[
        Path | None,
        path_option(
            "-o",
            "--output",
            help="The data's folder, in which the same command goes on. [default: runs/<date>-prepare-data-<model>]",
        ),
    ] = None,
    count: Annotated[int | None, knob_option("prepare_data.count")] = None,
    seed: Annotated[int | None, knob_option("prepare_data.seed")] = None,
    video_frames: Annotated[int | None, knob_option("prepare_data.video_frames")] = None,
    height: Annotated[int | None, knob_option("prepare_data.height")] = None,
    width: Annotated[int | None, knob_option("prepare_data.width")] = None,
    device: Annotated[str | None, knob_option("prepare_data.device")] = None,
    dtype: Annotated[str | None, knob_option("prepare_data.dtype")] = None,
    config: Config = None,
    sets: Set = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Turn clips and captions into data for training, which then needs neither the VAE nor the text encoder.

    Ctrl-C once stops after the clips at hand; the same command on the same folder goes on at the next shard, and makes
    again what was damaged or lost.
    """
    given = locals()
    beside = ("output", "config", "sets", "verbose", "as_json")
    flags = {f"prepare_data.{key}": value for key, value in given.items() if key not in beside}
    recipe = load(config, sets or (), flags)

    from vdit_cli.data.prepare_data import prepare_data

    with Console(verbose=verbose) as console, origins_told(recipe.prepare_data):
        made = prepare_data(recipe.prepare_data, output, console)
        console.end_stage()
        rate = made.clips_per_second
        if as_json:
            told = {
                "path": str(made.folder),
                "clips": len(made.clips),
                "cut_captions": made.cut,
                "made_by": asdict(made.clips.facts),
                "size": made.clips.size,
                "shards": len(made.clips.shards),
                "bytes": made.bytes,
                "clips_per_second": rate,
            }
            console.json("evdit.prepare-data/1", told)
        else:
            summary = f"{len(made.clips)} clips, {made.bytes / 1e6:.1f} MB"
            console.data(summary + ("" if rate is None else f", {rate:.2f} clips/s") + f"\n{made.folder}")
