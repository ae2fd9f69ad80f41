"""What a command advises where memory runs out is something that this command takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from vdit_cli.cli.app import as_evdit_error
from vdit_cli.recipe import load

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (ROOT / "tests" / "cli" / "flags.txt").read_text(encoding="utf-8").splitlines()

COMMANDS = {
    "vdit_cli/sampling/making.py": "generate",
    "vdit_cli/sampling/memory.py": "generate",
    "vdit_cli/analysis/analyze.py": "analyze",
    "vdit_cli/sampling/trajectory.py": "analyze",
    "vdit_cli/search/search_masks.py": "search-masks",
    "vdit_cli/data/encoding.py": "prepare-data",
    "vdit_cli/data/prepare_data.py": "prepare-data",
    "vdit_cli/distillation/distill_mlcd.py": "distill-mlcd",
    "vdit_cli/distillation/distill_kd.py": "distill-kd",
    "vdit_cli/distillation/kd_memory.py": "distill-kd",
    "vdit_cli/bench/attention.py": "bench attention",
    "vdit_cli/bench/model.py": "bench model",
}
"""Files that say what to do where memory is too small, and whose command it is."""
ADVISING = re.compile("out_of_memory_told|OUT_OF_MEMORY|LESS_MEMORY|check_measured")


def advice(path: Path) -> set[str]:
    """Flags and settings in the texts of every statement that is about memory."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in tree.body if ADVISING.search(ast.unparse(node))]
    texts = [node.value for top in functions for node in ast.walk(top) if isinstance(node, ast.Constant)]
    told = " ".join(text for text in texts if isinstance(text, str))
    return set(re.findall(r"--set [\w.]+=\w+|--(?!set)[a-z][a-z-]*", told))


def test_every_file_that_advises_is_in_the_table():
    """All that handle want of memory, but for where it is defined and for what has no flags of its own."""
    of_no_command = {"errors.py", "app.py", "peak.py", "failing.py"}
    found = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vdit_cli").rglob("*.py")
        if ADVISING.search(path.read_text(encoding="utf-8")) and path.name not in of_no_command
    }
    assert found == set(COMMANDS)


@pytest.mark.parametrize("file", COMMANDS)
def test_advice_for_want_of_memory_is_taken_by_the_command(file: str):
    """Each flag stands in the list of the command's flags, each setting is read."""
    given = {word for line in FLAGS if line.startswith(f"evdit {COMMANDS[file]} ") for word in line.split()}
    told = advice(ROOT / file)
    assert told
    for each in told:
        if each.startswith("--set "):
            load(None, [each.removeprefix("--set ")])
        else:
            assert each in given, f"{file} advises {each}"


def test_a_command_of_which_nothing_is_known_advises_no_flag():
    """Memory that runs out where nobody minded it."""
    assert "--" not in as_evdit_error(MemoryError()).text()
