"""What a message advises can be pasted into a shell as it stands: a remark behind a command is in brackets.

A shell takes "rm -r a, which is made anew" for six names to remove, and what stands in backquotes for a command; an
open bracket behind two spaces it refuses as a whole.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = re.compile(r"(?:rm|mv|cp|ls|chmod|iconv|git|pip|python|hf|evdit|--?[a-z-]+) ?[^:]*$")
"""How a line to paste begins; "--r is 3: it must be ..." tells what is wrong."""
UNSAFE = re.compile(r"^(?:(?!  \().)*(?:`|, (?:which|of|or|it|they|so) )")
"""Before any bracket."""


def texts(path: Path) -> Iterator[str]:
    """Every text of a file but for docstrings and help, with {} where a value stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    inside |= {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in ("help", "epilog")
        for part in ast.walk(node.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


@pytest.mark.parametrize("text", ["rm -r {}, which are then made anew", "--costs RUN, of `evdit bench attention`"])
def test_what_must_not_be_pasted_is_seen(text: str):
    """Two that were advised once."""
    assert COMMAND.match(text) and UNSAFE.search(text)


def test_every_command_that_is_advised_can_be_pasted():
    """No remark that a shell would take for names, no command inside."""
    found = [
        f"{path.relative_to(ROOT)}: {text}"
        for path in sorted((ROOT / "vdit_cli").rglob("*.py"))
        for text in texts(path)
        if COMMAND.match(text) and UNSAFE.search(text)
    ]
    assert found == []
