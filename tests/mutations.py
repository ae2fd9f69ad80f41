"""Mistakes that tests must see: `python -m tests.mutations [NAME ...]` makes each in a copy and wants its tests red.

mutations.json lists them: `text` stands once in `file` and becomes `replacement`; one at least of `tests` must fail.
The same tests must pass before, and where none can run nothing is shown. Exit 1 where a mistake goes unseen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("vdit_cli", "tests", "recipes", "pyproject.toml")
PASSED, FAILED = 0, 1
"""What pytest exits with; anything else means that tests did not run."""


class Mutation(NamedTuple):
    """A mistake by its name, and the tests that see it."""

    name: str
    file: str
    text: str
    replacement: str
    tests: list[str]


MUTATIONS = {
    each["name"]: Mutation(**each)
    for each in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
}


def copy_to(folder: Path) -> None:
    """Copy what the tests need, so that the checkout is never touched; weights are linked."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "assets"))
        else:
            shutil.copy(ROOT / name, folder / name)
    (folder / "vdit_cli" / "assets").symlink_to(ROOT / "vdit_cli" / "assets")


def tested(folder: Path, tests: Iterable[str]) -> tuple[int, str]:
    """pytest's exit code and words for the copy in `folder`, up to the first failure."""
    # No bytecode: a mutated file may have the size and the second of the one before.
    place = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "EVDIT_ERRORS": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **place}, capture_output=True, encoding="utf-8", timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def unseen(mutation: Mutation, folder: Path) -> str | None:
    """Why the mistake is not seen in the copy in `folder`, which is as it was afterwards; None where it is."""
    file = folder / mutation.file
    right = file.read_text(encoding="utf-8")
    if right.count(mutation.text) != 1:
        return f"its text stands {right.count(mutation.text)} times in {mutation.file}"
    file.write_text(right.replace(mutation.text, mutation.replacement), encoding="utf-8")
    code, told = tested(folder, mutation.tests)
    file.write_text(right, encoding="utf-8")
    if code == FAILED:
        return None
    return "its tests stay green" if code == PASSED else f"its tests do not run:\n{told[-2000:]}"


def main(names: list[str]) -> int:
    """Try the mistakes of these names, all without any; say each with its seconds."""
    unknown = set(names) - MUTATIONS.keys()
    if unknown:
        sys.stderr.write(f"no mutation is called {', '.join(sorted(unknown))}\n")
        return 2
    chosen = [MUTATIONS[name] for name in names or MUTATIONS]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy_to(Path(folder))
        code, told = tested(Path(folder), sorted({test for each in chosen for test in each.tests}))
        if code != PASSED:
            sys.stderr.write(f"the tests fail without any mutation:\n{told[-4000:]}\n")
            return 1
        for each in chosen:
            start = time.perf_counter()
            why = unseen(each, Path(folder))
            missed += why is not None
            sys.stdout.write(
                f"{'seen' if why is None else 'MISSED'}  {time.perf_counter() - start:4.1f} s  {each.name}"
            )
            sys.stdout.write("\n" if why is None else f": {why}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} mistakes seen\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
