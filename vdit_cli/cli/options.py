"""The flags that several commands share, and how a flag takes its help and default from the recipe's knob."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vdit_cli.artifacts.places import expanded
from vdit_cli.errors import EvditError
from vdit_cli.knobs import find_knob, flag_name
from vdit_cli.reader import MOST_LAYERS
from vdit_cli.recipe import Recipe


def knob_option(key: str, *extra: str, metavar: str | None = None, unset: str = "the model's") -> Any:
    """The Typer option of a knob by its dotted key; declare the parameter with the default None (= not given).

    `extra` are more names of the same flag ("-m"); `unset` says what a default of None means.
    A knob that is true or false also gets its `--no-` form.
    Use: `steps: Annotated[int | None, knob_option("generate.steps")] = None`.
    """
    kind, found = find_knob(Recipe, key, key)
    name = flag_name(Recipe, key)
    default = getattr(section_of(key), found.name)
    shown = unset if default is None else default if isinstance(default, str) else json.dumps(default)
    if kind is bool:
        name, shown = f"{name}/--no-{name[2:]}", "yes" if default else "no"
    help = f"{found.metadata['help']} [default: {shown}]"
    return typer.Option(name, *extra, help=help, show_default=False, metavar=metavar)


def section_of(key: str) -> Any:
    """The section, with its defaults, in which the knob of a dotted key stands."""
    at: Any = Recipe()
    for name in key.split(".")[:-1]:
        at = getattr(at, name)
    return at


def path_option(*names: str, help: str) -> Any:
    """The Typer option of a path that need not be given; see `typed_path`."""
    parser = typed_path(names[-1].strip("-"), names[0])
    return typer.Option(*names, help=help, show_default=False, parser=parser, metavar="<path>")


def path_argument(metavar: str, help: str) -> Any:
    """The Typer argument of a path, or of several; see `typed_path`."""
    return typer.Argument(metavar=metavar, help=help, parser=typed_path(metavar.rstrip(".")))


def typed_path(name: str, flag: str = "") -> Callable[[str], Path]:
    """What reads the path called `name`: empty text, as a variable of a shell that is not set, is an error (exit 2).

    `Path("")` is the current folder, which nobody asked for; and a "~" that the shell left is a home folder.
    """

    def read(text: str) -> Path:
        if str(text) == "":
            steps = [f"no {flag}"] if flag else []
            raise EvditError(f"{name} is empty: it must say something", where=f"{flag} ''".strip(), next_steps=steps)
        return expanded(str(text), f"{flag} {text}".strip())

    return read


Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Config = Annotated[Path | None, path_option("--config", help="A recipe file (YAML); flags and --set win over it.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Set any key of the recipe, as section.key=value; may be repeated.", show_default=False),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say every option and where it was set, on stderr.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
AllowChanged = Annotated[
    bool, typer.Option("--allow-changed", help="Go on with a run that was begun with other values.")
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        max=MOST_LAYERS,
        help="Run on N GPUs of this machine, or with --device cpu on N processes. [default: one]",
        show_default=False,
        metavar="N",
    ),
]
"""Use: `if launched(gpus, device): return` (parallel.launch) first, then `with joined(device) as ranks`."""
