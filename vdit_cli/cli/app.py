"""The front door: which commands there are, and how every error becomes a message and an exit code.

A command is a file `vdit_cli/cli/<name>.py` (dashes become underscores) that has either
- `command`, a function whose parameters are the flags and whose docstring is the help, and `EXAMPLE`, the line or
  lines that end its help page; or
- `app`, `typer.Typer(cls=HelpPages, epilog=EXAMPLE)`, for a command with sub-commands, each of them registered by
  `@app.command("name", cls=HelpPage, epilog="evdit ...")`.
Only the named command's file is imported, and it imports its engine (and so torch) inside the function: help is quick.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import MarkupMode, TyperCommand, TyperGroup

from vdit_cli import __version__
from vdit_cli.cli.console import Console, tell
from vdit_cli.cli.help_page import HelpPage, HelpPages, markup_mode
from vdit_cli.errors import (
    DONE,
    ENVIRONMENT,
    FAILED,
    INTERRUPTED,
    OUT_OF_MEMORY,
    EvditError,
    Interrupted,
    brief,
    nearest,
    quoted,
    unknown_name,
)
from vdit_cli.parallel.environment import leave_error, not_told_yet, rank

COMMANDS: tuple[tuple[str, str], ...] = (
    ("doctor", "Check this machine; each problem comes with its fix"),
    ("models", "List the models, and whether their weights are here"),
    ("generate", "Make a video from a prompt"),
    ("analyze", "See which tiles a model's attention uses: tables, pictures, a report"),
    ("masks", "Show a mask plan, or seal it again after editing"),
    ("bench", "Measure how fast tile attention is on this machine"),
    ("score", "Compare shapes videos with their prompts by image analysis"),
    ("compare", "Show the videos of runs side by side, where they differ most"),
    ("prepare-data", "Turn clips and captions into data for training"),
    ("search-masks", "Choose a tile mask for each layer by what it changes"),
    ("distill-mlcd", "Train a student that needs few steps"),
    ("distill-kd", "Train a student to make under masks what it makes without"),
    ("run", "Carry out all stages of a recipe, one after another"),
    ("status", "Show where a run stands, and what to type next"),
    ("train-shapes", "Train the embedded model from nothing"),
)
"""(name, one line of help) of every command, in the order in which a person needs them."""

EXAMPLE = 'evdit generate "a large red circle moving right over a black background" -o out.mp4'


class FrontDoor(HelpPages):
    """The commands of COMMANDS; the page that lists them imports none of their files."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of COMMANDS."""
        return [name for name, _ in COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """The command's name and line of help, for the list."""
        lines = dict(COMMANDS)
        return HelpPage(cmd_name, help=lines[cmd_name]) if cmd_name in lines else None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str, TyperCommand | TyperGroup, list[str]]:
        """The command itself, its file now imported. Raises EvditError for a name that is not in COMMANDS."""
        name, *rest = args
        return name, load_command(name, self.rich_markup_mode), rest


def load_command(name: str, mode: MarkupMode = None) -> TyperCommand | TyperGroup:
    """Import the file of the command `name` and build its Typer command. Raises EvditError for an unknown name."""
    if name not in dict(COMMANDS):
        raise unknown_name("command", name, [known for known, _ in COMMANDS], where=f"evdit {name}")
    module = importlib.import_module(f"vdit_cli.cli.{name.replace('-', '_')}")
    if hasattr(module, "app"):
        module.app.rich_markup_mode = mode
        return named(typer.main.get_group(module.app), name)
    single = typer.Typer(add_completion=False, rich_markup_mode=mode)
    single.command(name, cls=HelpPage, epilog=module.EXAMPLE)(module.command)
    return named(typer.main.get_command(single), name)


def named(command: Any, name: str) -> TyperCommand | TyperGroup:
    """The same command under the name that the table gives it."""
    command.name = name
    return command


def print_version(asked: bool) -> None:
    """Print the version and leave, when asked."""
    if asked:
        Console().data(f"evdit {__version__}")
        raise typer.Exit()


def front_door(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=print_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="With an error, show the stack trace too (any place).")
    ] = False,
) -> None:
    """Efficient video diffusion transformers: fewer attention tiles, fewer steps, and proof that the video stays."""


def command_line(mode: MarkupMode = None) -> TyperGroup:
    """The whole command line as one Typer group, its pages in panels ("rich") or plain (None)."""
    app = typer.Typer(
        cls=FrontDoor,
        add_completion=False,
        rich_markup_mode=mode,
        pretty_exceptions_enable=False,
        epilog=EXAMPLE,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(front_door)
    return typer.main.get_command(app)  # type: ignore[return-value]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    own = args[: args.index("--")] if "--" in args else args
    debug = "--debug" in own
    args = [arg for arg in own if arg != "--debug"] + args[len(own) :]
    try:
        check_text(args)
        check_place()
        code = command_line(markup_mode()).main(args=args, prog_name="evdit", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        return explain(error)
    if code == INTERRUPTED:
        return explain(KeyboardInterrupt())
    return code if isinstance(code, int) else DONE


def check_text(args: Sequence[str]) -> None:
    """Raise EvditError for an argument with bytes that are not UTF-8: no receipt could hold it."""
    for number, arg in enumerate(args, 1):
        if any("\ud800" <= letter <= "\udfff" for letter in arg):
            shown = arg.encode("utf-8", "backslashreplace").decode("utf-8")
            raise EvditError(f"{shown} is not UTF-8 text", where=f"argument {number}", next_steps=["a UTF-8 terminal"])


def check_place() -> None:
    """Raise EvditError in a folder that was deleted: no relative path leads anywhere, and torch ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        what = "the folder that this shell is in is no longer there"
        raise EvditError(what, next_steps=["cd  (and the same command, with paths from there)"]) from error


def explain(error: BaseException) -> int:
    """Print an error on stderr in the house's form, or leave it to the launcher of ranks; returns its exit code.

    Of ranks that something else launched the first one on each machine tells what all of them would.
    """
    told = as_evdit_error(error)
    if isinstance(told, Interrupted) and rank() > 0:
        return DONE  # the first rank tells it for all; torchrun would end that one at another's exit code
    if not leave_error(told) and (text := not_told_yet(told.text())):
        tell(sys.stderr, text)
    return told.exit_code


def as_evdit_error(error: BaseException) -> EvditError:
    """Any error as one that a person can read, with its exit code."""
    if isinstance(error, EvditError):
        return error
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return EvditError("interrupted", next_steps=["the same command again"], exit_code=INTERRUPTED)
    if isinstance(error, typer.TyperException):
        return usage_error(error)
    if is_out_of_memory(error):
        return EvditError(
            f"out of memory: {first_line(error)}",
            next_steps=["fewer frames or a smaller size", "a machine with more memory"],
            exit_code=OUT_OF_MEMORY,
        )
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError) and error.filename is not None:
        what = f"{error.filename} can't be opened: {error.strerror}"
        steps = [f"ls -ld {quoted(Path(str(error.filename)))}  (whose it is, and who may open it)"]
        return EvditError(what, where=str(error.filename), next_steps=steps, exit_code=ENVIRONMENT)
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        name = brief(str(error.filename), str)
        return EvditError(f"{name} is no path: {error.strerror}", where=name, next_steps=["another path"])
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return EvditError(f"the disk is full: {first_line(error)}", next_steps=["free some space"], exit_code=FAILED)
    return EvditError(
        f"{type(error).__name__}: {first_line(error)}",
        where=place_of(error),
        next_steps=["the same command with --debug for the trace"],
        exit_code=FAILED,
    )


def usage_error(error: typer.TyperException) -> EvditError:
    """What Typer found wrong with the command line, in the house's form, with the command's help as the next step."""
    context = getattr(error, "ctx", None)
    page = f"{context.command_path if context else 'evdit'} --help"
    if type(error).__name__ == "NoArgsIsHelpError":
        return EvditError("no command was given", next_steps=[page])
    parameter = getattr(error, "param", None)
    if parameter is not None and error.message:
        what, where = error.message, " / ".join(parameter.opts) if parameter.opts else None
    else:
        what, where = error.format_message().split(" (Possible options")[0], None
    possible = getattr(error, "possibilities", None)
    steps = nearest(getattr(error, "option_name", ""), possible, 1) if possible else []
    return EvditError(what[:1].lower() + what[1:].rstrip("."), where=where, next_steps=[*steps, page])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch (told by name: it is not imported here) found no memory."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def place_of(error: BaseException) -> str | None:
    """File and line of the innermost frame of this package in the trace of `error`."""
    package = Path(__file__).parents[1]
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if package in Path(frame.filename).parents]
    return f"{Path(ours[-1].filename).relative_to(package.parent)}:{ours[-1].lineno}" if ours else None
