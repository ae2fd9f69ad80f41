"""The house held to its own bar: who imports whom, torch-freeness, lengths, docstrings, words.

Read with `ast`, imports inside functions included, so that nothing can be hidden by importing late.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vdit_cli"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

ROOMS = [
    ["__main__"],
    ["cli"],
    ["pipeline"],
    ["analysis", "search", "distillation", "evaluation", "bench"],
    ["data"],
    ["sampling"],
    ["backbones"],
    ["parallel"],
    ["attention"],
    ["tiles"],
    ["diffusion", "measures", "timing", "recipe", "artifacts"],
    ["recipe_training"],
    ["knobs"],
    ["reader"],
    ["errors"],
]
"""From the door to the cellar: a room imports from rooms below it and from itself, never from its neighbours."""

LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
TORCH_FREE = (
    "errors",
    "reader",
    "knobs",
    "recipe",
    "recipe_training",
    "artifacts",
    "tiles",
    "timing",
    "cli",
    "backbones/registry",
    "backbones/sources",
)
HEAVY = ("torch", "triton", "diffusers", "transformers", "accelerate", "scipy")
FILE_LINES, FUNCTION_LINES, KERNEL_LINES = 400, 60, 150
BANNED = {
    "manager",
    "helper",
    "helpers",
    "utils",
    "util",
    "common",
    "misc",
    "engine",
    "handler",
    "wrapper",
    "data2",
    "kwargs",
}
BANNED_STARTS = ("new_", "my_", "do_")
BANNED_TEXT = re.compile(r"TODO|FIXME|NotImplementedError|xfail|" + "no" + r" cover")


CATCH_ALL = {
    "vdit_cli/cli/app.py": "what nobody thought of ends there, with an exit code",
    "vdit_cli/bench/measuring.py": "kernels of other packages raise what they like: a row of the table says so",
}
"""Files that may catch every exception, and why."""


def name_of(path: Path) -> str:
    """A file as it is told in a failure."""
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path) -> str:
    """The room that a file of the package stands in: its folder, or its own name at the top."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import of a file, relative ones too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(["vdit_cli", *path.relative_to(PACKAGE).parts[: -node.level]]) if node.level else ""
            module = ".".join(filter(None, [start, node.module]))
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def functions_of(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    yield from (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public_things(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(name, node) of the public functions, classes and methods of a module; what is inside functions is private."""
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public_things(child, f"{prefix}{child.name}.")


def names_bound(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that a file gives a name to, but for what the libraries' own protocols name."""
    protocol = [node for node in functions_of(path) if node.name in ("__torch_dispatch__", "__torch_function__")]
    given = {argument for node in protocol for argument in ast.walk(node.args)}
    for node in ast.walk(tree_of(path)):
        if node in given or re.fullmatch("do_[A-Z]+", getattr(node, "name", None) or ""):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def test_every_room_is_in_the_table():
    """A new room is a decision: it gets its place among the others here."""
    assert {room_of(path) for path in FILES} - {"__init__"} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_downwards(path: Path):
    """A room imports only from itself and from the rooms below it."""
    room = room_of(path)
    wrong = []
    for line, module in imports_of(path):
        parts = module.split(".")
        if parts[0] != "vdit_cli" or len(parts) < 2 or parts[1].startswith("__") or room == "__init__":
            continue
        if parts[1] != room and LEVEL[parts[1]] <= LEVEL[room]:
            wrong.append(f"{name_of(path)}:{line} imports {module}")
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_torch_free_rooms_never_import_torch(path: Path):
    """Neither at the top of the file nor inside a function."""
    inside = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if any(inside == free or inside.startswith(free + "/") for free in TORCH_FREE):
        assert [module for _, module in imports_of(path) if module.split(".")[0] in HEAVY] == []


def test_torch_free_rooms_load_no_torch():
    """Nor by way of another file: import them all in a bare process and look."""
    modules = []
    for path in FILES:
        inside = path.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        if any(inside == free or inside.startswith(free + "/") for free in TORCH_FREE):
            modules.append("vdit_cli." + inside.replace("/", "."))
    program = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    program += f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", [*FILES, *TESTS, ROOT / "docs" / "build.py"], ids=name_of)
def test_files_are_short(path: Path):
    """At most 400 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short(path: Path):
    """At most 60 lines with signature and docstring; 150 in a folder `kernels/`; the flags of a command don't count."""
    most = KERNEL_LINES if "kernels" in path.parts else FUNCTION_LINES
    long = {}
    for node in functions_of(path):
        is_command = room_of(path) == "cli" and not node.name.startswith("_")
        start = node.body[0].lineno if is_command else node.lineno
        if node.end_lineno - start + 1 > most:
            long[f"{name_of(path)}:{node.lineno} {node.name}"] = node.end_lineno - start + 1
    assert long == {}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_names_have_docstrings(path: Path):
    """Modules, and the functions, classes and methods in them whose name does not begin with an underscore."""
    if path.name == "__init__.py" and path.parent != PACKAGE:
        assert path.read_text(encoding="utf-8") == "", "every __init__.py is empty but the package's own"
        return
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)} says nothing about itself"
    missing = [name for name, node in public_things(tree_of(path)) if not ast.get_docstring(node)]
    assert missing == []


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=name_of)
def test_names_are_words_of_the_house(path: Path):
    """No manager, helper, utils, ...; no new_, my_, do_; no kwargs that pass through."""
    named = [(0, path.stem), *names_bound(path)]
    words = [(line, name, re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) for line, name in named]
    wrong = {
        (line, name) for line, name, lower in words if BANNED & set(lower.split("_")) or lower.startswith(BANNED_STARTS)
    }
    assert wrong == set()


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=name_of)
def test_nothing_is_left_undone_or_swallowed(path: Path):
    """No global, no notes of work left, no exception that is caught and forgotten."""
    tree = tree_of(path)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Global)] == []
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    forgotten = [node.lineno for node in handlers if len(node.body) == 1 and isinstance(node.body[0], ast.Pass)]
    assert forgotten == []
    if path != Path(__file__):
        assert BANNED_TEXT.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_front_door_catches_every_exception(path: Path):
    """Anywhere else an exception is caught by its kind: what nobody thought of is a fault, not an answer."""
    handlers = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ExceptHandler)]
    caught = [(each.lineno, kind) for each in handlers for kind in ast.walk(each.type or ast.Name("BaseException"))]
    broad = [line for line, kind in caught if isinstance(kind, ast.Name) and kind.id in ("Exception", "BaseException")]
    assert broad == [] or name_of(path) in CATCH_ALL


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_systems_own_modules_stay_inside_functions(path: Path):
    """fcntl and msvcrt exist on one system each: a file must import on all of them."""
    top = [node for node in tree_of(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top for alias in node.names} | {getattr(node, "module", None) for node in top}
    assert names.isdisjoint({"fcntl", "msvcrt", "resource", "termios"})


def test_tests_mirror_the_package():
    """Each test folder is a package, and a folder of the package's that it mirrors exists."""
    folders = {path.parent for path in TESTS if path.name.startswith("test_")}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    free = {"every", "fuzz", "golden", "gpu"}
    rooms = {path.relative_to(ROOT / "tests").parts[0] for path in folders if path != ROOT / "tests"}
    assert {room for room in rooms - free if not (PACKAGE / room).is_dir()} == set()
