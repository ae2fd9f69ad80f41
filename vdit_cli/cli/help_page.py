"""Help pages that end with a copyable example: the Typer classes of every command and group."""

from __future__ import annotations

import sys
from typing import Any

from typer.core import MarkupMode, TyperCommand, TyperGroup


def markup_mode() -> MarkupMode:
    """Panels on a terminal, plain text in a pipe or a file."""
    return "rich" if sys.stdout.isatty() else None


class HelpPage(TyperCommand):
    """A command whose `epilog` is its example: one line a command, printed as it stands and never wrapped."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page, then the example."""
        example, self.epilog = self.epilog, None
        try:
            super().format_help(ctx, formatter)
        finally:
            self.epilog = example
        write_example(example, formatter)


class HelpPages(TyperGroup):
    """A group whose `epilog` is its example, like `HelpPage`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the page, then the example."""
        example, self.epilog = self.epilog, None
        try:
            super().format_help(ctx, formatter)
        finally:
            self.epilog = example
        write_example(example, formatter)


def write_example(example: str | None, formatter: Any) -> None:
    """Put `Example:` and the lines of `example`, indented, at the end of a help page."""
    if example:
        lines = "".join(f"  {line}\n" for line in example.strip().splitlines())
        formatter.write(f"\nExample:\n{lines}")
