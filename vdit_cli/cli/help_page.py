"""Help pages that end with a copyable example: the Typer classes of every command and group."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import MarkupMode, TyperCommand, TyperGroup

from vdit_cli.cli.console import Console


def markup_mode() -> MarkupMode:
    """Panels on a terminal, plain text in a pipe or a file."""
    return "rich" if sys.stdout.isatty() else None


class Page:
    """What a command and a group have in common: an `epilog` that is an example, a line a command, never wrapped."""

    epilog: str | None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page, then the example as it stands."""
        example, self.epilog = self.epilog, None
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        finally:
            self.epilog = example
        write_example(example, formatter)

    def get_help_option(self, ctx: Any) -> Any:
        """The option `--help`, whose page goes where all that was asked for goes."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        option.callback = show_help
        return option


class HelpPage(Page, TyperCommand):
    """A command with such a page."""


class HelpPages(Page, TyperGroup):
    """A group with such a page."""


def show_help(ctx: Any, parameter: Any, asked: bool) -> None:
    """Print the page and leave, when asked."""
    if asked:
        Console().data(ctx.get_help())
        ctx.exit()


def write_example(example: str | None, formatter: Any) -> None:
    """Put `Example:` and the lines of `example`, indented, at the end of a help page."""
    if example:
        lines = "".join(f"  {line}\n" for line in example.strip().splitlines())
        formatter.write(f"\nExample:\n{lines}")
