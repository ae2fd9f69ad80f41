"""`evdit search-masks`: a tile mask for each layer, chosen by what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import Config, Json, Set, Verbose, knob_option, path_option
from vdit_cli.knobs import origins_told
from vdit_cli.recipe import load

EXAMPLE = """evdit search-masks --r 0.1 -o runs/masks
evdit search-masks --sensitivity runs/masks --target-speedup 1.8 -o runs/masks-1.8
evdit generate "a large red circle moving left" --masks runs/masks-1.8 -o fast.mp4"""

Output = Annotated[
    Path | None,
    path_option(
        "-o",
        "--output",
        help="The run's folder, in which the same command goes on. [default: runs/<date>-search-masks-<model>]",
    ),
]


def command(
    output: Output = None,
    model: Annotated[str | None, knob_option("search_masks.model")] = None,
    text_encoder: Annotated[str | None, knob_option("search_masks.text_encoder")] = None,
    checkpoint: Annotated[str | None, knob_option("search_masks.checkpoint")] = None,
    r: Annotated[float | None, knob_option("search_masks.r")] = None,
    target_speedup: Annotated[float | None, knob_option("search_masks.target_speedup", unset="none")] = None,
    latency: Annotated[float | None, knob_option("search_masks.latency", metavar="SECONDS", unset="none")] = None,
    max_loss: Annotated[float | None, knob_option("search_masks.max_loss", unset="none")] = None,
    uniform: Annotated[str | None, knob_option("search_masks.uniform", metavar="MASK", unset="none")] = None,
    fix: Annotated[str | None, knob_option("search_masks.fix", metavar="LAYER=MASK,...", unset="none")] = None,
    costs: Annotated[str | None, knob_option("search_masks.costs", metavar="FILE|RUN", unset="shares of tiles")] = None,
    costs_at: Annotated[
        str | None, knob_option("search_masks.costs_at", metavar="PRESET", unset="the model's own attention")
    ] = None,
    step_rest: Annotated[
        float | None, knob_option("search_masks.step_rest", metavar="SECONDS", unset="not foretold")
    ] = None,
    by: Annotated[str | None, knob_option("search_masks.by", metavar="attention|relative|output")] = None,
    sensitivity: Annotated[
        str | None, knob_option("search_masks.sensitivity", metavar="RUN", unset="measured anew")
    ] = None,
    prompts_file: Annotated[str | None, knob_option("search_masks.prompts_file", metavar="FILE", unset="none")] = None,
    num_prompts: Annotated[int | None, knob_option("search_masks.num_prompts", unset="4, or all")] = None,
    at: Annotated[str | None, knob_option("search_masks.at", metavar="SHARES")] = None,
    seeds: Annotated[str | None, knob_option("search_masks.seeds", metavar="SEEDS")] = None,
    masks: Annotated[str | None, knob_option("search_masks.masks", metavar="MASKS")] = None,
    kernel: Annotated[str | None, knob_option("search_masks.kernel")] = None,
    steps: Annotated[int | None, knob_option("search_masks.steps")] = None,
    scheduler: Annotated[str | None, knob_option("search_masks.scheduler")] = None,
    guidance: Annotated[float | None, knob_option("search_masks.guidance")] = None,
    video_frames: Annotated[int | None, knob_option("search_masks.video_frames")] = None,
    height: Annotated[int | None, knob_option("search_masks.height")] = None,
    width: Annotated[int | None, knob_option("search_masks.width")] = None,
    device: Annotated[str | None, knob_option("search_masks.device")] = None,
    dtype: Annotated[str | None, knob_option("search_masks.dtype")] = None,
    offload: Annotated[str | None, knob_option("search_masks.offload", metavar="none|model|block")] = None,
    config: Config = None,
    sets: Set = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Search a tile mask for each layer: sensitivity.json, what each mask changes there, and plan.json, the choice.

    Nothing is decoded. Ctrl-C once stops after the step at hand; the same command goes on at the next prompt.
    """
    given = locals()
    beside = ("output", "config", "sets", "verbose", "as_json")
    flags = {f"search_masks.{key}": value for key, value in given.items() if key not in beside}
    recipe = load(config, sets or (), flags)
    options = recipe.search_masks

    with Console(verbose=verbose) as console, origins_told(options):
        if options.sensitivity is None:
            from vdit_cli.search.search_masks import search_masks as search
        else:
            from vdit_cli.search.choose_again import choose_again as search
        found = search(options, output, console)
        console.end_stage()
        if as_json:
            console.json("evdit.search-masks/1", found.content())
        else:
            console.data("\n".join([*found.sentences(), str(found.folder)]))
