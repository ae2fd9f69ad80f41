"""A finished run of the whole path, made once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pipeline.tiny import write_inputs
from vdit_cli.cli.app import main


class Whole(NamedTuple):
    """A finished run, and the words that made it."""

    path: Path
    words: list[str]

    def copied(self) -> Path:
        """A copy in the current folder, under the name that its words give it."""
        shutil.copytree(self.path, "run")
        return Path("run")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A finished run of recipes/shapes.yaml at a tiny size."""
    folder = tmp_path_factory.mktemp("whole")
    words = write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words) == 0
    return Whole(folder / "run", words)
