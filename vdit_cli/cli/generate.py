"""`evdit generate`: a prompt to a video file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vdit_cli.cli.console import Console
from vdit_cli.cli.options import Config, Json, Overwrite, Set, Verbose, knob_option, path_option
from vdit_cli.knobs import origins_told
from vdit_cli.recipe import load

EXAMPLE = """evdit generate "a large red circle moving right over a black background" -o out.mp4
evdit generate --prompts-file prompts.txt --masks 2:6 -o videos/"""

Output = Annotated[
    Path | None,
    path_option(
        "-o",
        "--output",
        help="One video: a .mp4, .gif or .webp, or without a suffix a folder of PNGs. Several: a folder, in which "
        "the same command goes on. [default: runs/<date>-generate-<model>]",
    ),
]
SPACING = "trailing|linspace|leading|NUMBERS"
BESIDE = ("prompts", "prompts_file", "output", "config", "sets", "overwrite", "verbose", "as_json")
"""Parameters of the command that are no knobs."""


def command(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What the video shows; quote each.", show_default=False),
    ] = None,
    prompts_file: Annotated[
        Path | None, path_option("--prompts-file", help="A UTF-8 file with a prompt a line.")
    ] = None,
    output: Output = None,
    model: Annotated[str | None, knob_option("generate.model")] = None,
    text_encoder: Annotated[str | None, knob_option("generate.text_encoder")] = None,
    checkpoint: Annotated[str | None, knob_option("generate.checkpoint")] = None,
    masks: Annotated[str | None, knob_option("generate.masks", metavar="PLAN|RUN|k:F-k|auto|none")] = None,
    allow_other_weights: Annotated[bool | None, knob_option("generate.allow_other_weights")] = None,
    dense_steps: Annotated[int | None, knob_option("generate.dense_steps")] = None,
    lora: Annotated[list[str] | None, knob_option("generate.lora", metavar="FILE|FOLDER[:SCALE]")] = None,
    steps: Annotated[int | None, knob_option("generate.steps")] = None,
    scheduler: Annotated[str | None, knob_option("generate.scheduler")] = None,
    timesteps: Annotated[str | None, knob_option("generate.timesteps", metavar=SPACING)] = None,
    guidance: Annotated[float | None, knob_option("generate.guidance")] = None,
    negative: Annotated[str | None, knob_option("generate.negative")] = None,
    seed: Annotated[int | None, knob_option("generate.seed")] = None,
    num: Annotated[int | None, knob_option("generate.num")] = None,
    batch: Annotated[int | None, knob_option("generate.batch")] = None,
    video_frames: Annotated[int | None, knob_option("generate.video_frames")] = None,
    height: Annotated[int | None, knob_option("generate.height")] = None,
    width: Annotated[int | None, knob_option("generate.width")] = None,
    fps: Annotated[str | None, knob_option("generate.fps", metavar="RATE")] = None,
    device: Annotated[str | None, knob_option("generate.device")] = None,
    dtype: Annotated[str | None, knob_option("generate.dtype")] = None,
    offload: Annotated[str | None, knob_option("generate.offload", metavar="none|model|block")] = None,
    vae_tiling: Annotated[bool | None, knob_option("generate.vae_tiling")] = None,
    kernel: Annotated[str | None, knob_option("generate.kernel")] = None,
    strict: Annotated[bool | None, knob_option("generate.strict")] = None,
    files: Annotated[str | None, knob_option("generate.files", metavar="mp4|gif|webp|png")] = None,
    metadata: Annotated[bool | None, knob_option("generate.metadata")] = None,
    config: Config = None,
    sets: Set = None,
    overwrite: Overwrite = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Make a video from a prompt, or several; beside each lies a receipt (.json) of what really ran.

    The embedded model `shapes` needs no download and no GPU. Ctrl-C once stops after the step at hand.
    """
    given = locals()
    flags = {f"generate.{name}": value for name, value in given.items() if name not in BESIDE and value != []}
    recipe = load(config, sets or (), flags)
    console = Console(verbose=verbose)

    from vdit_cli.sampling.generate import Asked, generate

    asked = Asked(tuple(prompts or ()), prompts_file, output, overwrite)
    with console, origins_told(recipe.generate):
        made = generate(recipe.generate, asked, console)
    if as_json:
        videos = [{"path": str(video.path), "receipt": video.receipt.content()} for video in made]
        console.json("evdit.generate/1", {"videos": videos})
        return
    for video in made:
        console.data(str(video.path))
