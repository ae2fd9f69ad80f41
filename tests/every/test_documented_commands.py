"""Every `evdit ...` line in README, docs, recipes and messages is a command that exists, with flags that it has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vdit_cli.cli.app import COMMANDS, command_line, load_command

ROOT = Path(__file__).resolve().parents[2]
PLANNED: tuple[str, ...] = ()
"""Commands to come that a text may name; the same paragraph or message says that they are not built yet."""
NOT_BUILT = "not built yet"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "vdit_cli" / "assets").rglob("*.md"),
        *(ROOT / "recipes").glob("*.yaml"),
    ]
)
MODULES = sorted([*(ROOT / "vdit_cli").rglob("*.py"), *(ROOT / "docs").glob("*.py")])
LINE = re.compile(r"(?<![\w./-])evdit ((?:-|[a-z])[^\n`]*)")
END = re.compile(r"\s#|[;|&]|\s>|  \(|\)|\.\s|…")
"""Where a command line ends: a comment, the next command, a remark behind it."""


def flags_by_command() -> dict[str, set[str]]:
    """The flags of "generate", "bench model" and so on; those of evdit itself under ""."""
    found: dict[str, set[str]] = {}
    for name, command in [("", command_line()), *((name, load_command(name)) for name, _ in COMMANDS)]:
        pairs = [
            (name, command),
            *((f"{name} {inner}", each) for inner, each in getattr(command, "commands", {}).items()),
        ]
        for full, each in pairs:
            options = [each for each in each.params if each.param_type_name == "option"]
            found[full] = {flag for option in options for flag in (*option.opts, *option.secondary_opts)} | {
                "--help",
                "-h",
            }
    return found


def faults(line: str, known: dict[str, set[str]]) -> list[str]:
    """What is wrong with the words behind `evdit`: an unknown command, or flags that it does not have."""
    words = END.split(re.sub(r"\"[^\"]*\"|'[^']*'", "TEXT", line))[0].split()
    name = words[0] if words else ""
    if name.startswith("-") or name == "COMMAND":
        return [flag for flag in flags_in(words) if flag not in known[""]]
    if name in PLANNED:
        return []
    if name not in known:
        return [f"no command {name}"]
    inner = f"{name} {words[1]}" if len(words) > 1 else name
    takes = known.get(inner, known[name]) | {"--debug"}
    return [f"{name} has no {flag}" for flag in flags_in(words) if flag not in takes]


def flags_in(words: list[str]) -> list[str]:
    """The flags among the words of a command line."""
    return [word.partition("=")[0].rstrip(",.:") for word in words if re.match(r"--?[a-z]", word)]


def paragraphs(text: str) -> list[str]:
    """A page's parts between empty lines."""
    return re.split(r"\n\s*\n", text)


def lines_of_page(text: str) -> Iterator[tuple[str, str]]:
    """(words behind `evdit`, paragraph) of every command line of a page: in backticks, in a block, or after "# "."""
    inside = False
    for part in paragraphs(text):
        for line in part.splitlines():
            if line.lstrip().startswith("```"):
                inside = not inside
            elif inside:
                yield from ((found[1], part) for found in LINE.finditer(line))
            else:
                for quoted in re.findall(r"`([^`]+)`", line):
                    yield from ((found[1], part) for found in LINE.finditer(quoted) if quoted.startswith("evdit"))


def messages(source: str) -> Iterator[str]:
    """Every text of a module as it is written, what is filled in as X, docstrings' prose left out."""
    tree = ast.parse(source)
    prose = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    inner = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            if node in prose:
                yield from re.findall(r"`(evdit [^`]+)`", node.value)
            else:
                yield node.value


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Flags by command."""
    return flags_by_command()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_names_commands_that_exist(page: Path, known: dict[str, set[str]]):
    """And says of a command to come that it is not built yet."""
    found = list(lines_of_page(page.read_text(encoding="utf-8")))
    assert [(line, wrong) for line, _ in found if (wrong := faults(line, known))] == []
    assert [line for line, part in found if line.split()[0] in PLANNED and NOT_BUILT not in part] == []


def test_messages_name_commands_that_exist(known: dict[str, set[str]]):
    """Errors, advice, examples, help."""
    wrong, unsaid = [], []
    for path in MODULES:
        for text in messages(path.read_text(encoding="utf-8")):
            for found in LINE.finditer(text):
                name = found[1].split()[0]
                if "X" in name or not (name in known or name in PLANNED or re.match(r"[a-z]+-[a-z]+", name)):
                    continue  # prose: "evdit needs Python 3.11"
                wrong += [(path.name, found[1], fault) for fault in faults(found[1], known)]
                unsaid += [(path.name, text) for _ in [0] if name in PLANNED and NOT_BUILT not in text]
    assert (wrong, unsaid) == ([], [])


def test_planned_commands_are_not_built():
    """One that is built leaves the list."""
    assert not set(PLANNED) & {name for name, _ in COMMANDS}


def test_faults_are_found(known: dict[str, set[str]]):
    """A command and a flag that are not there, in each kind of text."""
    assert faults('generate "a b" --steps 4 -o x.mp4  # --nonsense', known) == []
    assert faults("generate --stepz 4", known) == ["generate has no --stepz"]
    assert faults("bench model --videos --frame", known) == ["bench has no --frame"]
    assert faults("serach --r 1", known) == ["no command serach"]
    page = "text `evdit analyze --foo` and evdit is\n\n```\nevdit doctor --bar\n```\n"
    assert [line for line, _ in lines_of_page(page)] == ["analyze --foo", "doctor --bar"]
    assert list(messages('"""Prose of evdit."""\nx = f"evdit models {y} --z"')) == ["evdit models X --z"]
