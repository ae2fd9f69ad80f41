"""Every command of COMMANDS: it resolves, its help imports little, is plain off a terminal and ends with an example."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from vdit_cli.cli.app import COMMANDS, load_command
from vdit_cli.knobs import flat
from vdit_cli.recipe import Recipe, load

NAMES = [name for name, _ in COMMANDS]
PAGES = ["", *NAMES, *(f"{name} {inner}" for name in NAMES for inner in getattr(load_command(name), "commands", {}))]
ASK = """
import contextlib, io, json, sys
from vdit_cli.cli.app import main
heavy = ("torch", "diffusers", "transformers", "numpy", "scipy", "matplotlib")
pages = {}
for name in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*name.split(), "--help"])
    found = [each for each in heavy if each in sys.modules]
    pages[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": found}
print(json.dumps(pages))
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_a_file_of_its_name(name: str):
    """`command` and EXAMPLE, or `app`; never both."""
    module = importlib.import_module(f"vdit_cli.cli.{name.replace('-', '_')}")
    assert hasattr(module, "command") != hasattr(module, "app")
    if hasattr(module, "command"):
        assert module.EXAMPLE.startswith("evdit ")


def test_every_command_file_is_in_the_table():
    """A file of cli/ with a `command` or an `app` that no name leads to would be lost."""
    folder = Path(importlib.import_module("vdit_cli.cli.app").__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "app"}
    found = {stem for stem in files if {"command", "app"} & set(vars(importlib.import_module(f"vdit_cli.cli.{stem}")))}
    assert found == {name.replace("-", "_") for name in NAMES}


@pytest.fixture(scope="module")
def pages() -> dict[str, dict[str, Any]]:
    """What `evdit NAME --help` did for each page, one after another in a process that had imported nothing."""
    done = subprocess.run([sys.executable, "-c", ASK, *PAGES], capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", PAGES)
def test_help_ends_with_an_example_and_imports_nothing_heavy(pages: dict[str, dict[str, Any]], name: str):
    """Quick because of what is not imported; how quick, `tests/speed.py` measures."""
    page = pages[name]
    assert (page["heavy"], page["err"], page["code"]) == ([], "", 0)
    text, found, examples = page["out"].partition("\nExample:\n")
    assert found and text.startswith(f"Usage: evdit {name}".rstrip())
    assert all(line.startswith(("  evdit ", "   ")) for line in examples.rstrip().splitlines())
    assert "\x1b" not in page["out"] and "╭" not in page["out"]


def test_the_installed_script_runs():
    """`evdit` itself, where the package is installed."""
    script = shutil.which("evdit", path=sysconfig.get_path("scripts"))
    assert script, "install the package: pip install -e ."
    done = subprocess.run([script, "--version"], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.startswith("evdit ")


SECTIONS = ("generate", "analyze", "search_masks", "prepare_data", "distill_mlcd", "distill_kd", "train_shapes")
SECTIONS += ("bench.attention", "bench.model")
"""Those of the recipe that a command of their name reads."""


@pytest.mark.parametrize("section", SECTIONS)
def test_a_bad_value_is_told_where_it_was_set(evdit, section: str):
    """By `--set`, though what checks it knows it as a flag, which some knobs of some commands are not."""
    knob = "kernel=flash" if section.startswith("distill_") else "device=tpu"
    more = {
        "generate": ["a large red circle moving right over a black background"],
        "prepare_data": ["--source", "shapes"],
    }
    words = [*section.replace("_", "-").split("."), *more.get(section, [])]
    code, _, err = evdit(*words, "--set", f"{section}.{knob}")
    assert code == 2 and f"  from:  --set {section}.{knob}\n" in err


@pytest.mark.parametrize("section", SECTIONS)
def test_a_setting_of_nothing_is_told_with_a_key_of_the_command(evdit, section: str):
    """One that the command takes: it is no example where it is another's."""
    code, out, err = evdit(*section.replace("_", "-").split("."), "--set=")
    told, _, step = err.strip().rpartition("\n  try:   --set ")
    assert (code, out) == (2, "") and told.startswith("error: '' sets nothing: it must be section.key=value")
    assert step.startswith(f"{section}.") and load(None, [step], {})


def typed(name: str, kind: str) -> list[Any]:
    """The parameters of a command whose function's types name a `kind`; of a command that holds others none."""
    *outer, last = name.split()
    command: Any = load_command(*outer).commands[last] if outer else load_command(last)
    if hasattr(command, "commands"):
        return []
    kinds = get_type_hints(command.callback)
    return [each for each in command.params if kind in str(kinds.get(each.name))]


def paths_of(name: str) -> list[str]:
    """Each flag of a command that takes a path, "" for an argument."""
    return [each.opts[-1] if each.opts[-1].startswith("-") else "" for each in typed(name, "Path")]


PATHS = [(name, flag) for name in PAGES[1:] for flag in paths_of(name)]


@pytest.mark.parametrize(("name", "flag"), PATHS)
def test_an_empty_path_is_refused(evdit, name: str, flag: str):
    """A variable of a shell that is not set is not the current folder: nothing is made in it.

    Where it is taken, the setting of nothing that follows keeps the command from its work.
    """
    others = ["--set="] if any("--set" in each.opts for each in load_command(name.split()[0]).params) else []
    code, out, err = evdit(*name.split(), *([f"{flag}=", *others] if flag else [""]))
    place = err.partition("\n  from:  ")[2].partition("\n")[0]
    assert (code, out) == (2, "") and " is empty: it must say something\n" in err
    assert place == {"--output": "-o ''", "": "''"}.get(flag, f"{flag} ''")
    assert not flag or f"\n  try:   no {place.split()[0]}\n" in err
    assert list(Path().iterdir()) == []


def test_every_number_that_is_no_knob_has_an_upper_bound():
    """A flag's own; knobs are told theirs by the recipe."""
    knobs = {key for key, _ in flat(Recipe())}
    found = {
        (name, each.opts[0]): each.max
        for name in PAGES[1:]
        for each in [*typed(name, "int"), *typed(name, "float")]
        if f"{name.replace('-', '_').replace(' ', '.')}.{each.name}" not in knobs
    }
    assert {("score", "--workers"), ("masks retarget", "--frames"), ("distill-kd", "--gpus")} <= set(found)
    assert [place for place, most in found.items() if most is None] == []


def test_paths_are_found():
    """The test above is one of every command that makes a file or reads a recipe."""
    assert {name for name, flag in PATHS if flag == "--config"} == {
        each.replace("_", "-").replace(".", " ") for each in SECTIONS
    }
    assert {name for name, flag in PATHS if not flag} == {
        *("score", "compare", "run", "status"),
        *(f"masks {name}" for name in ("show", "pareto", "seal", "retarget", "relax")),
    }


def test_every_section_is_read_by_a_command_of_its_name():
    found = {".".join(key.split(".")[:-1]) for key, _ in flat(Recipe()) if key.endswith(".device")}
    assert found == set(SECTIONS)
