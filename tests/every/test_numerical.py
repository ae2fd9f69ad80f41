"""Tolerances stand in one place, which sees one that is too wide; tests that have one are marked."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.closeness import assert_close, assert_within, report

TESTS = Path(__file__).resolve().parents[1]
RAW = {"allclose", "isclose", "approx", "testing"}
COMPARE = {("tests.closeness", name) for name in ("assert_close", "assert_within")}
SMALL = 1e-2


def trees() -> dict[str, ast.Module]:
    """Every module of the tests but closeness itself."""
    files = [path for path in sorted(TESTS.rglob("*.py")) if path.name != "closeness.py"]
    dotted = (".".join(path.relative_to(TESTS.parent).with_suffix("").parts) for path in files)
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in zip(dotted, files, strict=True)}


def names_in(node: ast.AST) -> Iterator[str]:
    """Names, attributes, imported names and arguments (which may be fixtures) under `node`."""
    for each in ast.walk(node):
        match each:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) | ast.arg(arg=name):
                yield name


def raw_comparisons(tree: ast.Module) -> list[int]:
    """Lines that compare with a tolerance by other means: other functions, or an error below a small number."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.alias) and RAW & set(names_in(node)):
            lines.append(node.lineno)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, how, right in zip(sides, node.ops, sides[1:], strict=False):
                value, bound = (left, right) if isinstance(how, ast.Lt | ast.LtE) else (right, left)
                numbers = [x.value for x in ast.walk(bound) if isinstance(x, ast.Constant) and type(x.value) is float]
                is_error = "abs" in names_in(value) or (
                    isinstance(bound, ast.Constant) and any(x < SMALL for x in numbers)
                )
                if isinstance(how, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and numbers and is_error:
                    lines.append(node.lineno)
    return sorted(set(lines))


def unmarked(modules: dict[str, ast.Module]) -> list[str]:
    """Tests that compare with a tolerance, themselves or through functions of the tests, without the marker."""
    uses: dict[tuple[str, str], set[tuple[str, str]]] = {}
    is_marked: set[tuple[str, str]] = set()
    for module, tree in modules.items():
        imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tests")
            for alias in node.names
        }
        whole = any("pytest.mark.numerical" in ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                uses[module, node.name] = {imported.get(name, (module, name)) for name in names_in(node)}
                if whole or any("pytest.mark.numerical" in ast.unparse(each) for each in node.decorator_list):
                    is_marked.add((module, node.name))
    reached = set(COMPARE)
    reached |= {function for function, used in uses.items() if any(name == "gradcheck" for _, name in used)}
    while more := {function for function, used in uses.items() if used & reached} - reached:
        reached |= more
    return [f"{module}::{name}" for module, name in sorted(reached - is_marked) if name.startswith("test_")]


def test_tolerances_stand_in_one_place():
    found = {module: lines for module, tree in trees().items() if (lines := raw_comparisons(tree))}
    assert not found, "tests/closeness.py compares"


def test_every_test_with_a_tolerance_is_marked():
    assert not unmarked(trees()), "pytest.mark.numerical is missing"


MADE_UP = """
import pytest
from tests.closeness import assert_close
from tests.elsewhere import assert_right as right

def helper(x):
    assert_close(x, 1)

@pytest.fixture
def checked():
    helper(1)

def test_unmarked(): assert_close(1, 1)
def test_by_a_helper(): helper(1)
def test_by_a_fixture(checked): pass
def test_by_another_module(): right(1)
def test_gradients(): assert torch.autograd.gradcheck(f, x)
def test_of_something_else(): assert 1 < 2 < x.abs() and y > 1e-3 and abs(a - b) <= 1

@pytest.mark.numerical
def test_marked(): helper(1)
"""
ELSEWHERE = "from tests.closeness import assert_within\ndef assert_right(x):\n    assert_within(x, 1, planted=10)"
MODULES = {"tests.made_up": ast.parse(MADE_UP), "tests.elsewhere": ast.parse(ELSEWHERE)}


def test_missing_marks_are_found():
    names = ["by_a_fixture", "by_a_helper", "by_another_module", "gradients", "unmarked"]
    assert unmarked(MODULES) == [f"tests.made_up::test_{name}" for name in names]
    marked = ast.parse("pytestmark = [pytest.mark.numerical]\n" + MADE_UP)
    assert unmarked(MODULES | {"tests.made_up": marked}) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.testing.assert_close(a, b)",
        "assert np.allclose(a, b)",
        "assert a == pytest.approx(b)",
        "from math import isclose",
        "assert error < 1e-3",
        "assert 0.001 >= error",
        "assert (a - b).abs().mean() < 0.05 * b.std()",
    ],
)
def test_other_comparisons_are_found(line: str):
    assert raw_comparisons(ast.parse(line)) == [1]
    assert raw_comparisons(MODULES["tests.made_up"]) == []


@pytest.fixture
def unrecorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong on purpose is not written down for `make test-cpus`."""
    monkeypatch.delenv("EVDIT_ERRORS", raising=False)


VALUES = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]])


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("found", "expected", "bounds", "told"),
    [
        (VALUES + 2e-3, VALUES, {"atol": 1e-3}, "2 bounds away"),
        (VALUES * torch.nan, VALUES, {}, "inf bounds away"),
        (VALUES[:1], VALUES, {}, "of shape"),
        (VALUES.half(), VALUES, {}, "float16, not float32"),
        ({"a": VALUES}, {"b": VALUES}, {}, "a"),
        ([VALUES], [VALUES, VALUES], {}, "1, not 2"),
        (VALUES, VALUES, {"rtol": 0.2}, "doubled is only 5 bounds away"),
        (VALUES + 8, VALUES + 8, {"atol": 0.4}, "moved by one is only 7.5 bounds away"),
        (torch.zeros(2), torch.zeros(2), {}, "doubled is only 0 bounds away"),
        (VALUES, VALUES, {"atol": 0.2, "planted": VALUES + 1}, "the planted mistake is only 5 bounds away"),
    ],
)
def test_what_is_wrong_or_too_wide_is_refused(unrecorded, found, expected, bounds, told):
    with pytest.raises(AssertionError, match=told):
        assert_close(found, expected, **bounds)


@pytest.mark.numerical
def test_what_is_right_and_tight_passes(unrecorded):
    assert_close(VALUES + 1e-5, VALUES)
    assert_close(VALUES.half(), VALUES.double(), rtol=1e-3)
    assert_close({"a": [1.0, np.float32(2)], "b": np.ones(3)}, {"a": [1, 2], "b": np.ones(3)}, atol=1e-3)
    assert_close(torch.zeros(2), torch.zeros(2), planted=torch.ones(2))
    assert_within({"a": 0.1, "b": 0.05}, 0.2, planted=3)
    for error, planted in ((0.3, 3), (0.1, 1), ({"a": 0.1, "b": float("nan")}, 3)):
        with pytest.raises(AssertionError):
            assert_within(error, 0.2, planted=planted)


@pytest.mark.numerical
def test_errors_are_reported_by_their_share_of_the_bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of all comparisons of a test the worst; float64 may come nearer to its bound."""
    monkeypatch.setenv("EVDIT_ERRORS", str(tmp_path / "errors"))
    for error in (1e-4, 1.5e-4):
        assert_close(VALUES + error, VALUES, atol=1e-3)
    assert_close(VALUES.double() + 9e-4, VALUES.double(), atol=1e-3)
    told, has_room = report([str(tmp_path / "errors")])
    assert has_room and len(told.splitlines()) == 3 and told.splitlines()[0].endswith("(float64)")
    assert_within(0.21, 1, planted=10)
    told, has_room = report([str(tmp_path / "errors")])
    assert not has_room and "0.2100  tests/every/test_numerical.py::test_errors_are_reported" in told
    assert json.loads((tmp_path / "errors").read_text(encoding="utf-8").splitlines()[-1])["float64"] is False
