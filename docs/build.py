"""Write what is generated: docs/cli.md, docs/recipes.md, docs/masks.svg, tests/cli/flags.txt, tables of figures.

A table of figures stands between `<!-- table: data/speed.json cpu -->` and `<!-- end -->` in README.md or a page of
docs/, and is made from the raw figures of `docs/data/speed.json`:

    {"machine": "...", "command": "...", "tables": {"cpu": {
        "columns": [["mask", "mask", ""], ["seconds", "median.seconds", ".2f"]],
        "rows": [{"mask": "1:7", "median": {"seconds": 0.0123}}]}}}

A column is its title, the key in a row (dots go inside), and Python's format of the value. The masks over so many
latent frames stand between `<!-- masks: 8 24 -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pictures import masks_svg

from vdit_cli.artifacts.digest import file_digest
from vdit_cli.backbones.registry import ENTRIES
from vdit_cli.backbones.sources import SUMS, BackboneEntry
from vdit_cli.cli.app import COMMANDS, command_line, load_command
from vdit_cli.knobs import Section, find_knob, flat, knobs, rule_of
from vdit_cli.reader import MOST_TEXT
from vdit_cli.recipe import Recipe
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import family_masks

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 110
TABLE = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
MASKS = re.compile(r"(<!-- masks: ([\d ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FRAME_720P = (45, 80)
"""Rows and columns of tokens of a 720p frame: 3600, the size at which the paper counts blocks."""


def pages() -> dict[Path, str]:
    """Every generated file and what it should hold."""
    made = {
        ROOT / "docs" / "cli.md": cli_page(),
        ROOT / "docs" / "recipes.md": recipes_page(),
        ROOT / "tests" / "cli" / "flags.txt": flags_list(),
        ROOT / "docs" / "masks.svg": masks_svg(),
        **{entry.weights_folder / SUMS: sums(entry) for entry in ENTRIES if entry.is_embedded},
    }
    cards = [entry.weights_folder / "README.md" for entry in ENTRIES if entry.is_embedded]
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *cards]:
        if page not in made:
            made[page] = with_tables(page.read_text(encoding="utf-8"))
    return made


def sums(entry: BackboneEntry) -> str:
    """The digests of an embedded model's files, as `sha256sum -c` and `evdit doctor` read them."""
    return "".join(f"{file_digest(entry.weights_folder / each.path)}  {each.path}\n" for each in entry.files)


def all_commands() -> list[tuple[str, Any]]:
    """(full name, Typer command) of the front door, every command and every sub-command, in order."""
    found: list[tuple[str, Any]] = [("evdit", command_line())]
    for name, _ in COMMANDS:
        command = load_command(name)
        found.append((f"evdit {name}", command))
        found += [(f"evdit {name} {inner}", each) for inner, each in getattr(command, "commands", {}).items()]
    return found


def help_text(name: str, command: Any) -> str:
    """The help page of a command as plain text of a fixed width."""
    context = command.context_class(
        command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["-h", "--help"]
    )
    return command.get_help(context).rstrip()


def cli_page() -> str:
    """docs/cli.md: every help page as it is printed."""
    parts = ["# Commands", "Generated from the help pages by `make docs`; `evdit COMMAND --help` says the same."]
    for name, command in all_commands():
        parts += [f"## {name}", f"```\n{help_text(name, command)}\n```"]
    return "\n\n".join(parts) + "\n"


def flags_list() -> str:
    """tests/cli/flags.txt: a flag a line, so that a change of the interface shows in a review."""
    lines = []
    for name, command in all_commands():
        for parameter in command.params:
            flags = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []
            lines.append(f"{name} {' '.join(flags) or parameter.name.upper()}")
    return "\n".join(lines) + "\n"


def recipes_page() -> str:
    """docs/recipes.md: the recipes that are in recipes/, and every knob with its default and its help."""
    parts = [
        "# Recipes",
        "Generated from `vdit_cli/recipe.py` by `make docs`.",
        "A recipe is a YAML file for `--config`; a key can also be set by `--set section.key=value`, and those that a\n"
        "person types daily have a flag. Later ones win: default, file, `--set`, flag. Where the default is\n"
        f"`null`, the model's own value is taken. A text has at most {MOST_TEXT:,} signs, and a list as many items.",
    ]
    files = sorted((ROOT / "recipes").glob("**/*.yaml"))
    if files:
        parts.append("## In this repository")
        parts += [f"**[{file.name}](../{file.relative_to(ROOT).as_posix()})**: {opening(file)}" for file in files]
    for each in knobs(Recipe):
        options = getattr(Recipe(), each.name)
        parts += [f"## {each.name}", (type(options).__doc__ or "").strip(), knob_table(each.name, options)]
    return "\n\n".join(parts) + "\n"


def opening(recipe: Path) -> str:
    """The three lines of comment that a recipe opens with, as one paragraph."""
    lines = recipe.read_text(encoding="utf-8").splitlines()[:3]
    return " ".join(line.removeprefix("#").strip() for line in lines)


def knob_table(name: str, options: Section) -> str:
    """A Markdown table of a section's keys, their defaults and bounds, and help."""
    rows = []
    for key, value in flat(options):
        kind, found = find_knob(Recipe, f"{name}.{key}", key)
        rows.append([f"`{key}`", f"`{json.dumps(value)}`", rule_of(kind, found), found.metadata["help"]])
    return markdown(["key", "default", "must be", "what it is"], rows)


def with_tables(text: str) -> str:
    """A page with every table of figures made again from its data, and every table of masks from their definition."""
    text = TABLE.sub(lambda found: found[1] + figures(found[2], found[3]) + "\n" + found[4], text)
    return MASKS.sub(lambda found: found[1] + mask_table(map(int, found[2].split())) + "\n" + found[3], text)


def mask_table(lengths: Iterable[int]) -> str:
    """The masks over each of `lengths` latent frames, densest first: what they keep of tiles and skip of blocks."""
    rows = []
    for frames in lengths:
        for mask in reversed(family_masks(frames)[:-1]):
            blocks = 1 - mask.kept_block_share(VideoGrid(frames, *FRAME_720P))
            shares = [f"{100 * share:.2f}" for share in (mask.kept_share, mask.skipped_share, blocks)]
            rows.append([str(frames), mask.name, ", ".join(map(str, mask.global_frames)), *shares])
    titles = ["latent frames", "mask", "global frames", "tiles kept %", "tiles skipped %", "blocks skipped %"]
    return markdown(titles, rows)


def figures(data: str, name: str) -> str:
    """The Markdown table `name` of the file `data`, a path inside docs/."""
    table = json.loads((ROOT / "docs" / data).read_text(encoding="utf-8"))["tables"][name]
    rows = [[formatted(row, key, how) for _, key, how in table["columns"]] for row in table["rows"]]
    return markdown([title for title, _, _ in table["columns"]], rows)


def formatted(row: Any, key: str, how: str) -> str:
    """The value at a dotted key in Python's format `how`; a dash where the row has none."""
    for part in key.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return "-" if row is None else format(row, how)


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main() -> int:
    """Write every page that is stale and name it."""
    for page, text in pages().items():
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8", newline="\n")
            sys.stdout.write(f"wrote {page.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
