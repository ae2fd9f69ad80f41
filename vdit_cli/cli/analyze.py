"""`evdit analyze`: which tiles a model's attention uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import Config, Json, Set, Verbose, knob_option, path_option
from vdit_cli.knobs import origins_told
from vdit_cli.recipe import load

EXAMPLE = """evdit analyze -o runs/tiles
evdit analyze --model open-sora-plan --num-prompts 2 --at 0.1,0.5,0.9 --offload model -o runs/tiles-osp"""


def command(
    output: Annotated[
        Path | None,
        path_option(
            "-o",
            "--output",
            help="The run's folder, in which the same command goes on. [default: runs/<date>-analyze-<model>]",
        ),
    ] = None,
    model: Annotated[str | None, knob_option("analyze.model")] = None,
    text_encoder: Annotated[str | None, knob_option("analyze.text_encoder")] = None,
    checkpoint: Annotated[str | None, knob_option("analyze.checkpoint")] = None,
    prompts_file: Annotated[str | None, knob_option("analyze.prompts_file", metavar="FILE", unset="none")] = None,
    num_prompts: Annotated[int | None, knob_option("analyze.num_prompts", unset="4, or all")] = None,
    at: Annotated[str | None, knob_option("analyze.at", metavar="SHARES")] = None,
    seeds: Annotated[str | None, knob_option("analyze.seeds", metavar="SEEDS")] = None,
    layers: Annotated[str | None, knob_option("analyze.layers", metavar="LAYERS")] = None,
    masks: Annotated[str | None, knob_option("analyze.masks", metavar="MASKS")] = None,
    rows: Annotated[int | None, knob_option("analyze.rows", unset="256, or 64")] = None,
    steps: Annotated[int | None, knob_option("analyze.steps")] = None,
    scheduler: Annotated[str | None, knob_option("analyze.scheduler")] = None,
    guidance: Annotated[float | None, knob_option("analyze.guidance")] = None,
    video_frames: Annotated[int | None, knob_option("analyze.video_frames")] = None,
    height: Annotated[int | None, knob_option("analyze.height")] = None,
    width: Annotated[int | None, knob_option("analyze.width")] = None,
    device: Annotated[str | None, knob_option("analyze.device")] = None,
    dtype: Annotated[str | None, knob_option("analyze.dtype")] = None,
    offload: Annotated[str | None, knob_option("analyze.offload", metavar="none|model|block")] = None,
    config: Config = None,
    sets: Set = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """See which tiles a model's attention uses while it samples: analysis.json, pictures and report.html in a folder.

    Nothing is decoded. Ctrl-C once stops after the step at hand; the same command goes on at the next prompt.
    """
    given = locals()
    beside = ("output", "config", "sets", "verbose", "as_json")
    flags = {f"analyze.{key}": value for key, value in given.items() if key not in beside}
    recipe = load(config, sets or (), flags)

    from vdit_cli.analysis.analyze import analyze

    with Console(verbose=verbose) as console, origins_told(recipe.analyze):
        found = analyze(recipe.analyze, output, console)
        console.end_stage()
        if as_json:
            told = {"findings": found.findings.content(), "analysis": found.analysis.content()}
            console.json("evdit.analyze/1", {"path": str(found.folder), **told})
        else:
            console.data("\n".join([found.findings.verdict, *found.findings.sentences.values(), str(found.folder)]))
