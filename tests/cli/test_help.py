"""Help pages: every knob's flag tells its default and help; panels only on a terminal; lists import nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from vdit_cli.cli import app
from vdit_cli.cli.options import knob_option
from vdit_cli.knobs import flag_name
from vdit_cli.recipe import Recipe


def test_a_flag_takes_its_words_from_the_knob():
    """Name, help, default; a yes-or-no knob gets both forms."""

    def command(
        video_frames: Annotated[int | None, knob_option("generate.video_frames")] = None,
        vae_tiling: Annotated[bool | None, knob_option("generate.vae_tiling")] = None,
        seed: Annotated[int | None, knob_option("generate.seed")] = None,
    ) -> None:
        """Show."""

    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command()(command)
    frames, tiling, seed = typer.main.get_command(single).params[:3]
    assert frames.opts == ["--frames"] and "[default: the model's]" in frames.help
    assert tiling.opts == ["--vae-tiling"] and tiling.secondary_opts == ["--no-vae-tiling"]
    assert seed.help.endswith("[default: 0]") and seed.default is None
    assert flag_name(Recipe, "generate.text_encoder") == "--text-encoder"


def test_the_list_imports_no_command():
    """Nor does the help of one command import another's file."""
    program = (
        "import sys; from vdit_cli.cli.app import main; main({args!r}); "
        "print(*[name for name in sys.modules if name.startswith('vdit_cli.cli.')])"
    )
    for args, mine in [(["--help"], set()), (["models", "--help"], {"vdit_cli.cli.models"})]:
        done = subprocess.run(
            [sys.executable, "-c", program.format(args=args)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=True,
        )
        loaded = set(done.stdout.splitlines()[-1].split()) - {"vdit_cli.cli.app", "vdit_cli.cli.help_page"}
        assert loaded & {f"vdit_cli.cli.{name.replace('-', '_')}" for name, _ in app.COMMANDS} == mine


def test_panels_on_a_terminal_only(evdit, monkeypatch: pytest.MonkeyPatch):
    """Both end with the same example."""
    _, plain, _ = evdit("models", "--help")
    monkeypatch.setattr(app, "markup_mode", lambda: "rich")
    _, panels, _ = evdit("models", "--help")
    assert "╭" not in plain and "╭" in panels
    assert plain.split("Example:")[1] == panels.split("Example:")[1]


def test_a_flag_that_is_no_knob_has_a_range():
    """Knobs have theirs in the recipe; any other whole number says what is the least and the most."""
    ranges = 0
    for file in Path(app.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            inside = node.slice.elts if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) else []
            if len(inside) == 2 and ast.unparse(inside[0]) in ("int", "int | None", "float", "float | None"):
                call = inside[1]
                if ast.unparse(call.func) == "typer.Option":
                    ranges += 1
                    assert {"min", "max"} <= {each.arg for each in call.keywords}, f"{file.name}:{node.lineno}"
    assert ranges >= 5


def test_a_flag_that_changes_the_picture_says_so(evdit):
    """Tiles of the VAE save memory, and see less of the picture each."""
    out = " ".join(evdit("generate", "--help")[1].split())
    assert "decode in overlapping tiles: less memory, a little slower, and not the same picture" in out
