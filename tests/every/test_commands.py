"""Every command of COMMANDS: it resolves, its help is quick, plain off a terminal, and ends with an example."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from vdit_cli.cli.app import COMMANDS

NAMES = [name for name, _ in COMMANDS]
HELP_SECONDS = 0.7


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


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_ends_with_an_example_and_is_quick(name: str):
    """In a process of its own, as a person would: under 0.7 s in the best of a few tries."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        command = [sys.executable, "-m", "vdit_cli", *filter(None, [name]), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < HELP_SECONDS:
            break
    assert min(seconds) < HELP_SECONDS
    assert done.stderr == ""
    page, found, examples = done.stdout.partition("\nExample:\n")
    assert found and page.startswith(f"Usage: evdit {name}".rstrip())
    assert all(line.startswith(("  evdit ", "   ")) for line in examples.rstrip().splitlines())
    assert "\x1b" not in done.stdout and "╭" not in done.stdout


def test_the_installed_script_runs():
    """`evdit` itself, where the package is installed."""
    script = shutil.which("evdit", path=sysconfig.get_path("scripts"))
    assert script, "install the package: pip install -e ."
    done = subprocess.run([script, "--version"], capture_output=True, text=True, encoding="utf-8", check=True)
    assert done.stdout.startswith("evdit ")
