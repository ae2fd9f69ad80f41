"""A list of mistakes that is right, some of them made here, and what is said of one that nobody sees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests import mutations
from tests.mutations import MUTATIONS, ROOT, Mutation, copy_to, unseen

MADE_HERE = ("teacher-never-guided", "masks-on-the-teacher")
"""Of the others `make test-mutations` makes each."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    folder = tmp_path_factory.mktemp("copy")
    copy_to(folder)
    return folder


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_a_mutation_fits_the_code(mutation: Mutation):
    """Its text stands once in its file, it changes something, what it makes is Python, and its tests exist."""
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.text) == 1 and mutation.replacement != mutation.text
    ast.parse(text.replace(mutation.text, mutation.replacement))
    for test in mutation.tests:
        file, _, name = test.partition("::")
        found = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
        assert name in {node.name for node in found if isinstance(node, ast.FunctionDef)}, test
    assert mutation.tests


@pytest.mark.parametrize("name", MADE_HERE)
def test_a_mistake_is_seen(copy: Path, name: str):
    """In a copy, by a test of the room that the mistake stands in."""
    assert unseen(MUTATIONS[name], copy) is None


@pytest.mark.parametrize(
    ("code", "told"), [(0, "its tests stay green"), (1, None), (2, "its tests do not run"), (5, "its tests do not run")]
)
def test_a_mistake_that_nobody_sees_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told):
    """Green tests, and tests that can't run, are no sight of it; the copy is as it was afterwards."""
    (tmp_path / "file.py").write_text("a = 1\n", encoding="utf-8")
    read: list[str] = []

    def tested(folder: Path, tests: list[str]) -> tuple[int, str]:
        read.append((folder / "file.py").read_text(encoding="utf-8"))
        return code, "words"

    monkeypatch.setattr(mutations, "tested", tested)
    why = unseen(Mutation("planted", "file.py", "1", "2", ["tests/test_x.py::test_x"]), tmp_path)
    assert (why is None) if told is None else (why or "").startswith(told)
    assert read == ["a = 2\n"] and (tmp_path / "file.py").read_text(encoding="utf-8") == "a = 1\n"
    assert unseen(Mutation("planted", "file.py", "b", "2", []), tmp_path) == "its text stands 0 times in file.py"


@pytest.mark.parametrize("codes", [[0, 1], [0, 0], [1]])
def test_the_program_ends_with_1_where_one_is_missed(monkeypatch: pytest.MonkeyPatch, capsys, codes: list[int]):
    """Also where the tests fail by themselves; an unknown name is a usage error."""
    left = iter(codes)
    monkeypatch.setattr(mutations, "tested", lambda folder, tests: (next(left), "words"))
    assert mutations.main(["raw-student-kept"]) == (0 if codes == [0, 1] else 1)
    said = capsys.readouterr()
    words = {2: "MISSED" if codes[-1] == 0 else "1 of 1 mistakes seen", 1: "fail without any mutation"}
    assert words[len(codes)] in said.out + said.err
    assert mutations.main(["no-such"]) == 2
