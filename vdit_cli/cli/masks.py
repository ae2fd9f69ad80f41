"""`evdit masks`: look at mask plans and at the front they come from, seal one again, make another one of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdit_cli.artifacts.atomic import check_writable
from vdit_cli.artifacts.run_form import known_manifest
from vdit_cli.cli.console import Console
from vdit_cli.cli.help_page import HelpPage, HelpPages
from vdit_cli.cli.options import Overwrite, knob_option, path_argument, path_option
from vdit_cli.errors import EvditError, printable, quoted
from vdit_cli.reader import MOST_SIZE
from vdit_cli.recipe import load
from vdit_cli.tiles.mask import MOST_DRAWN, TileMask
from vdit_cli.tiles.plan import EDITED, MaskPlan
from vdit_cli.tiles.plan_json import PLAN_FILE
from vdit_cli.tiles.relax import DENSE, read_layers
from vdit_cli.tiles.relax import relax as relaxed
from vdit_cli.tiles.retarget import MadeOver
from vdit_cli.tiles.retarget import retarget as retargeted

if TYPE_CHECKING:
    from vdit_cli.backbones.sources import ModelSource

EXAMPLE = """evdit masks show plan.json -o plan.png
evdit masks pareto runs/masks -o front.png
evdit masks seal plan.json
evdit masks retarget plan.json --frames 93 -o plan-93.json
evdit masks relax plan.json --layer 7 --to 4:4 -o plan-relaxed.json"""
COLUMNS = ("layer", "mask", "kept", "skipped", "frames")
BETWEEN = 2 * len(COLUMNS)
"""Signs between the columns, of both ways to draw them at most."""
BLOCKS = ("█", "░")
"""A global frame, and one of the others."""
PLAIN_BLOCKS = ("#", ".")
"""The same where the output can't print BLOCKS."""

app = typer.Typer(cls=HelpPages, epilog=EXAMPLE, add_completion=False)


@app.callback()
def masks() -> None:
    """Show mask plans and what a search could choose, seal a plan after editing it, make another one of it.

    A plan holds one mask k:m a layer: k global frames that see and are seen by all frames, and m others that see
    themselves and the global ones.
    """


@app.command("show", cls=HelpPage, epilog="evdit masks show plan.json\nevdit masks show runs/my-search --json")
def show(
    plan: Annotated[Path, path_argument("PLAN|RUN", "A plan file, or the folder of a run that made one.")],
    output: Annotated[
        Path | None, path_option("-o", "--output", help="Also draw it as this .png: layers, and the tiles of masks.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Draw a plan, one row a layer.

    A row has the layer's mask, the shares of tiles that it keeps and skips, and its frames, the global ones solid.
    """
    place = picture_place(output, overwrite)
    found = MaskPlan.read(plan)
    console = Console()
    if place:
        from vdit_cli.search.plan_picture import draw as draw_picture

        draw_picture(found, place)
        console.say(f"wrote {place}")
    if as_json:
        console.json("evdit.masks/1", as_content(found))
    elif console.out.isatty():
        draw(found, console)
    else:
        console.data("\n".join([title(found), *plain_rows(found, blocks_for(console)), summary(found)]))


@app.command("pareto", cls=HelpPage, epilog="evdit masks pareto runs/masks -o front.png")
def pareto(
    run: Annotated[Path, path_argument("RUN", "A run of search-masks, or its sensitivity.json.")],
    output: Annotated[Path | None, path_option("-o", "--output", help="Also draw it as this .png.")] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", help="The score: attention, relative or output. [default: the one of the chosen plan]"),
    ] = None,
    costs: Annotated[
        str | None, knob_option("search_masks.costs", metavar="FILE|RUN", unset="kept shares of tiles")
    ] = None,
    costs_at: Annotated[
        str | None, knob_option("search_masks.costs_at", metavar="MODEL", unset="the searched model")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Draw what a search could choose: loss against cost.

    That is every plan that no other beats in both, exactly. Beside them stand the uniform masks, the plans of every r,
    and the one that was chosen.
    """
    from vdit_cli.search import pareto as fronts
    from vdit_cli.search.front_picture import draw as draw_picture
    from vdit_cli.search.front_picture import thinning
    from vdit_cli.search.front_plot import lines
    from vdit_cli.search.plan_costs import call_of, read_costs

    place = picture_place(output, overwrite)
    table, plan = fronts.read_search(run)
    options = load(None, (), {"search_masks.costs": costs, "search_masks.costs_at": costs_at}).search_masks
    prices = read_costs(options, table.masks, table.architecture.layers, lambda: call_of(table))
    score = by or (str(plan.made_by.get("by", "attention")) if plan else "attention")
    found = fronts.pareto(table, score, prices.masks, plan)
    console = Console()
    if prices.is_seconds:
        console.say(f"costs: {prices.told}")
    if plan is None:
        console.say(f"no plan lies beside {table.origin}: none is marked as chosen")
    if place:
        draw_picture(found, place)
        console.say(f"wrote {place}: {thinning(found)}")
    if as_json:
        console.json("evdit.masks-pareto/1", {**found.content(), "costs": prices.told})
    else:
        console.data("\n".join(lines(found)))


def picture_place(output: Path | None, overwrite: bool, flag: str = "-o") -> Path | None:
    """Where a flag's picture goes. Raises EvditError (exit 2), before any work, for a place that it can't have."""
    if output is None:
        return None
    where = f"{flag} {output}"
    if output.suffix != ".png":
        step = f"{flag} {quoted(output / 'picture.png' if output.is_dir() else output.with_suffix('.png'))}"
        raise EvditError(f"{output} is no place for a picture: it is written as a .png", where=where, next_steps=[step])
    if output.is_dir():
        raise EvditError(
            f"{output} is a folder: a .png is a file", where=where, next_steps=[f"another name with {flag}"]
        )
    if output.exists() and not overwrite:
        steps = ["--overwrite", f"another place with {flag}"]
        raise EvditError(f"{output} is there already: it is not replaced", where=where, next_steps=steps)
    check_writable(output, where)
    return output


@app.command("seal", cls=HelpPage, epilog="evdit masks seal plan.json")
def seal(
    plan: Annotated[Path, path_argument("FILE", "A plan file that was edited.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Seal an edited plan again.

    Its content is checked and its digest written anew, so that commands take it. What was predicted before the edit is
    left out, and made_by says that it was edited. A plan that is not whole and consistent is refused and left as it is.
    """
    console = Console()
    try:
        found, is_sealed = MaskPlan.read(plan), True
    except EvditError:
        found, is_sealed = MaskPlan.read(plan, sealed=False), False
    if not is_sealed:
        if found.predicted:
            console.say(f"left out, as it was predicted before the edit: {', '.join(found.predicted)}")
        again = found.made_by.get("command") == EDITED
        made_by = found.made_by if again else {"command": EDITED, "made_by": dict(found.made_by)}
        found = replace(found, made_by=made_by, predicted={})
    try:
        file = found.write(found.origin or plan)
    except EvditError as error:  # it has no -o, which is what another command would be told
        steps = ["a copy of the plan in a folder that can be written"]
        raise EvditError(error.what, where=error.where, next_steps=steps, exit_code=error.exit_code) from error
    if as_json:
        console.json("evdit.masks-seal/1", {"file": str(file), "digest": found.digest})
    else:
        console.data(f"sealed {file}: digest {found.digest}")


@app.command("retarget", cls=HelpPage, epilog="evdit masks retarget plan.json --frames 93 -o plan-93.json")
def retarget(
    plan: Annotated[Path, path_argument("PLAN|RUN", "A plan file, or the folder of a run that made one.")],
    video_frames: Annotated[
        int | None, typer.Option("--frames", min=1, max=MOST_SIZE, help="Frames of the video. [default: the model's]")
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", min=1, max=MOST_SIZE, help="Height in pixels. [default: the model's]")
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", min=1, max=MOST_SIZE, help="Width in pixels. [default: the model's]")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model that the plan is for. [default: the one that it names]")
    ] = None,
    output: Annotated[
        Path | None,
        path_option("-o", "--output", help="The plan to write. [default: plan-<frames>x<height>x<width>.json]"),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Make a plan over for another size of video.

    Each layer keeps the stride of its global frames: 2:6 of 8 latent frames is 6:18 of 24. What changes is said. How
    much the plan loses at the other size is not known; only a search there tells.
    """
    from vdit_cli.backbones.registry import open_backbone

    found = MaskPlan.read(plan)
    source = source_of(found, model)
    backbone = open_backbone(source, device="cpu", video_frames=video_frames, height=height, width=width)
    usual = backbone.defaults
    size = (video_frames or usual.video_frames, height or usual.height, width or usual.width)
    made = retargeted(found, backbone.grid(*size, found.grid.text_tokens))
    made.plan.check_fits(backbone.name, backbone.architecture, made.plan.grid)
    place = plan_place(output or Path(f"plan-{size[0]}x{size[1]}x{size[2]}.json"), overwrite)
    tell_made(made, place, "evdit.masks-retarget/1" if as_json else None)


@app.command("relax", cls=HelpPage, epilog="evdit masks relax plan.json --layer 7 --to 4:4 -o plan-relaxed.json")
def relax(
    plan: Annotated[Path, path_argument("PLAN|RUN", "A plan file, or the folder of a run that made one.")],
    layer: Annotated[list[str], typer.Option("--layer", help="The layer, or several: 7,9; may be repeated.")],
    to: Annotated[str, typer.Option("--to", help=f"Their mask, of the plan's latent frames: 4:4, or {DENSE}.")],
    output: Annotated[Path, path_option("-o", "--output", help="The plan to write.")],
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Give layers of a plan another mask, a denser one where a student loses too much.

    All else stays, but for what was predicted: that was of the masks before. What changes is said.
    """
    found = MaskPlan.read(plan)
    made = relaxed(found, read_layers(layer, len(found.masks)), to)
    tell_made(made, plan_place(output, overwrite), "evdit.masks-relax/1" if as_json else None)


def source_of(plan: MaskPlan, model: str | None) -> ModelSource:
    """The model that is asked for, else the one that made the plan: by the run that it lies in, or by its name.

    Raises EvditError (exit 2) where that is not here: of a model's folder a plan holds the name alone.
    """
    from vdit_cli.backbones.registry import find_source

    if model is not None:
        return find_source(model)
    run = known_manifest(Path(plan.origin or PLAN_FILE).parent) or {}
    made_on = str(run.get("model", plan.backbone))
    try:
        return find_source(made_on, where=plan.origin or "--model")
    except EvditError as error:
        what = f"the plan was made on the model {made_on}, which is no registered one and no folder here"
        steps = ["--model FOLDER  (where that model lies)"]
        raise EvditError(what, where=plan.origin, next_steps=steps) from error


def plan_place(output: Path, overwrite: bool) -> Path:
    """The file that a plan is written to, which only a plan may be that is there, with `overwrite`.

    Raises EvditError (exit 2) for anything else there.
    """
    place = output / PLAN_FILE if output.is_dir() else output
    if place.exists() and not overwrite:
        steps = ["--overwrite", "another place with -o"]
        raise EvditError(f"{place} is there already: it is not replaced", where=f"-o {place}", next_steps=steps)
    if place.exists():
        try:
            MaskPlan.read(place, sealed=False)
        except EvditError as error:
            what = f"{place} is there already and no plan, which --overwrite would replace: {error.what}"
            raise EvditError(what, where=f"-o {place}", next_steps=["another place with -o"]) from error
    return place


def tell_made(made: MadeOver, place: Path, schema: str | None) -> None:
    """Write a plan and say what changed, as JSON of the `schema` where one is given."""
    file = made.plan.write(place)
    console = Console()
    if schema:
        console.json(schema, {"file": str(file), "digest": made.plan.digest, **made.content()})
    else:
        changes = made.lines or ("nothing changes: the plan is for this size",)
        console.data("\n".join([*changes, f"wrote {file}: digest {made.plan.digest}"]))


def as_content(plan: MaskPlan) -> dict[str, Any]:
    """The plan as JSON values, with the shares of each layer: of tiles, and of token pairs."""
    return {
        "file": plan.origin,
        "digest": plan.digest,
        "backbone": plan.backbone,
        "architecture": asdict(plan.architecture) if plan.architecture else None,
        "grid": asdict(plan.grid),
        "kept_share": plan.kept_share,
        "skipped_share": plan.skipped_share,
        "histogram": plan.histogram(),
        "searched_on": plan.searched_on,
        "made_by": dict(plan.made_by),
        "predicted": dict(plan.predicted),
        "layers": [
            {
                "layer": layer,
                **mask.content(),
                "kept_pair_share": mask.kept_pair_share(plan.grid),
                "skipped_pair_share": 1 - mask.kept_pair_share(plan.grid),
            }
            for layer, mask in enumerate(plan.masks)
        ],
    }


def title(plan: MaskPlan) -> str:
    """What the plan is for, in one line."""
    made_for = plan.architecture or f"{len(plan.masks)} layers"
    return f"{plan.origin}: {plan.name}, {made_for}, {plan.grid}, digest {plan.digest[:12]}"


def summary(plan: MaskPlan) -> str:
    """All layers together, in one line."""
    counts = ", ".join(f"{name} in {layers}" for name, layers in plan.histogram().items())
    return f"of all tiles kept {percent(plan.kept_share)}, skipped {percent(plan.skipped_share)}; layers: {counts}"


def rows_of(plan: MaskPlan, blocks: tuple[str, str]) -> list[tuple[str, ...]]:
    """The cells of each layer's row, in the order of COLUMNS; of the frames as many as the terminal has room for."""
    rows = [
        (str(layer), mask.name, percent(mask.kept_share), percent(mask.skipped_share))
        for layer, mask in enumerate(plan.masks)
    ]
    room = shutil.get_terminal_size().columns - sum(map(max_length, zip(*rows, COLUMNS, strict=False))) - BETWEEN
    return [(*row, frames_drawn(mask, blocks, room)) for row, mask in zip(rows, plan.masks, strict=True)]


def max_length(cells: Iterable[str]) -> int:
    """Of a column the widest cell's signs."""
    return max(map(len, cells))


def frames_drawn(mask: TileMask, blocks: tuple[str, str], room: int) -> str:
    """A sign a frame; where there is no room for all, the first ones and how many are left out."""
    more, shown, is_global = "", min(mask.frames, MOST_DRAWN), set(mask.global_frames)
    if mask.frames > min(room, MOST_DRAWN):
        shown = max(1, min(room - len(f" and {mask.frames} more"), MOST_DRAWN))
        more = f" and {mask.frames - shown} more"
    return "".join(blocks[frame not in is_global] for frame in range(shown)) + more


def percent(share: float) -> str:
    """A share with one decimal."""
    return f"{100 * share:.1f} %"


def blocks_for(console: Console) -> tuple[str, str]:
    """BLOCKS, or PLAIN_BLOCKS where the encoding of stdout does not have them."""
    try:
        "".join(BLOCKS).encode(getattr(console.out, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return PLAIN_BLOCKS
    return BLOCKS


def plain_rows(plan: MaskPlan, blocks: tuple[str, str]) -> list[str]:
    """The table as lines: numbers to the right, frames to the left."""
    rows = [COLUMNS, *rows_of(plan, blocks)]
    widths = [max_length(column) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]


def draw(plan: MaskPlan, console: Console) -> None:
    """The table in colours, for a terminal."""
    from rich.console import Console as RichConsole
    from rich.table import Table
    from rich.text import Text

    blocks = blocks_for(console)
    table = Table(box=None)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "frames" else "right", no_wrap=name != "frames")
    for *numbers, frames in rows_of(plan, blocks):
        drawn = Text(frames)
        drawn.highlight_regex(f"{blocks[0]}+", "bold cyan")
        table.add_row(*numbers, drawn)
    RichConsole(file=console.out, width=shutil.get_terminal_size().columns).print(
        Text(printable(title(plan))), table, Text(summary(plan)), sep="\n"
    )
