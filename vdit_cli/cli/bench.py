"""`evdit bench`: how fast attention and a whole denoising step are on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vdit_cli.cli.console import Console
from vdit_cli.cli.help_page import HelpPage, HelpPages
from vdit_cli.cli.options import Config, Json, Set, knob_option, path_option
from vdit_cli.knobs import Section, origins_told
from vdit_cli.recipe import load

EXAMPLE = "evdit bench attention --preset shapes"
ATTENTION_EXAMPLE = """evdit bench attention --preset open-sora-plan-29 -o runs/attention
evdit bench attention --latent-frames 8 --frame-tokens 256 --heads 6 --head-dim 48 --masks 2:6,1:7 --json
evdit bench attention --table 1 --kernels none"""

MODEL_EXAMPLE = """evdit bench model --preset open-sora-plan-29 --videos -o runs/model
evdit bench model --layers 2 --heads 2 --head-dim 48 --frame-tokens 64 --plans 2:6,1:7 --json"""

app = typer.Typer(cls=HelpPages, epilog=EXAMPLE, add_completion=False)

RunFolder = Annotated[
    Path | None,
    path_option(
        "-o",
        "--output",
        help="The run's folder (results.json, results.md, results.png), in which the same command goes on with the "
        "missing rows. [default: runs/<date>-bench-<what>-<preset>]",
    ),
]


@app.callback()
def bench() -> None:
    """Measure how fast tile attention is on this machine, against the fastest dense attention it has."""


@app.command("attention", cls=HelpPage, epilog=ATTENTION_EXAMPLE)
def attention(
    output: RunFolder = None,
    preset: Annotated[str | None, knob_option("bench.attention.preset")] = None,
    every: Annotated[bool | None, knob_option("bench.attention.every")] = None,
    table: Annotated[int | None, knob_option("bench.attention.table", metavar="1", unset="none")] = None,
    latent_frames: Annotated[int | None, knob_option("bench.attention.latent_frames")] = None,
    frame_tokens: Annotated[int | None, knob_option("bench.attention.frame_tokens")] = None,
    heads: Annotated[int | None, knob_option("bench.attention.heads")] = None,
    head_dim: Annotated[int | None, knob_option("bench.attention.head_dim")] = None,
    text: Annotated[int | None, knob_option("bench.attention.text")] = None,
    batch: Annotated[int | None, knob_option("bench.attention.batch")] = None,
    masks: Annotated[str | None, knob_option("bench.attention.masks", metavar="k:m,k:m,...")] = None,
    kernels: Annotated[str | None, knob_option("bench.attention.kernels", metavar="NAME,NAME,...|all|none")] = None,
    backward: Annotated[bool | None, knob_option("bench.attention.backward")] = None,
    dtype: Annotated[str | None, knob_option("bench.attention.dtype")] = None,
    device: Annotated[str | None, knob_option("bench.attention.device")] = None,
    seconds: Annotated[float | None, knob_option("bench.attention.seconds")] = None,
    config: Config = None,
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Time tile attention by mask and kernel against every dense kernel of this machine.

    A kernel is timed only after its outputs and gradients agreed with a float64 reference in this process. Exit code 5
    says that one did not, 4 that the memory was too small for every row. Ctrl-C once stops after the mask at hand; the
    same command goes on.
    """
    given = locals()
    beside = ("output", "config", "sets", "as_json")
    flags = {f"bench.attention.{name}": value for name, value in given.items() if name not in beside}
    options = load(config, sets or (), flags).bench.attention
    console = Console()
    if not {"preset", "every", "table"} & options.origins.keys():
        console.say(f"no preset was named: sizes and masks are those of {options.preset} where none are set")

    from vdit_cli.bench.attention import bench_attention
    from vdit_cli.bench.tables import as_text

    show(console, options, as_json, as_text, lambda: bench_attention(options, output, console))


@app.command("model", cls=HelpPage, epilog=MODEL_EXAMPLE)
def model(
    output: RunFolder = None,
    preset: Annotated[str | None, knob_option("bench.model.preset")] = None,
    plans: Annotated[str | None, knob_option("bench.model.plans", metavar="k:m,r=.1,...")] = None,
    guidance: Annotated[str | None, knob_option("bench.model.guidance", metavar="both|kept|distilled")] = None,
    compile: Annotated[str | None, knob_option("bench.model.compile", metavar="auto|both|blocks|none")] = None,
    kernel: Annotated[str | None, knob_option("bench.model.kernel")] = None,
    videos: Annotated[bool | None, knob_option("bench.model.videos")] = None,
    lengths: Annotated[str | None, knob_option("bench.model.lengths", metavar="F,F,...", unset="none")] = None,
    layers: Annotated[int | None, knob_option("bench.model.layers")] = None,
    heads: Annotated[int | None, knob_option("bench.model.heads")] = None,
    head_dim: Annotated[int | None, knob_option("bench.model.head_dim")] = None,
    latent_frames: Annotated[int | None, knob_option("bench.model.latent_frames")] = None,
    frame_tokens: Annotated[int | None, knob_option("bench.model.frame_tokens")] = None,
    dtype: Annotated[str | None, knob_option("bench.model.dtype")] = None,
    device: Annotated[str | None, knob_option("bench.model.device")] = None,
    seconds: Annotated[float | None, knob_option("bench.model.seconds")] = None,
    config: Config = None,
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Time a denoising step of a whole transformer with random weights, dense and under mask plans.

    Each plan's step stands beside the dense one, beside what the share of attention predicts, and beside a plain step:
    separate projections, padded text, torch's own attention. Exit code 4 says that the memory was too small for every
    row. Ctrl-C once stops after the row at hand; the same command goes on.
    """
    given = locals()
    beside = ("output", "config", "sets", "as_json")
    flags = {f"bench.model.{name}": value for name, value in given.items() if name not in beside}
    options = load(config, sets or (), flags).bench.model
    console = Console()

    from vdit_cli.bench.model import bench_model
    from vdit_cli.bench.model_tables import as_text

    show(console, options, as_json, as_text, lambda: bench_model(options, output, console))


def show(
    console: Console,
    options: Section,
    as_json: bool,
    as_text: Callable[[dict[str, Any]], str],
    measure: Callable[[], dict[str, Any]],
) -> None:
    """Measure, then print the results, also those of a bench that failed. Raises BenchFailed after printing."""
    from vdit_cli.bench.failing import BenchFailed

    failure = None
    with console, origins_told(options):
        try:
            results = measure()
        except BenchFailed as error:
            results, failure = error.results, error
    if as_json:
        console.json(results["schema"], {key: value for key, value in results.items() if key != "schema"})
    else:
        console.data(as_text(results))
    if failure is not None:
        raise failure
