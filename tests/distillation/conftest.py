"""What several tests of a distillation begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distillation.prepared import write_data
from tests.tiny_pipeline import write_pipeline


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model and data prepared for it."""
    folder = tmp_path_factory.mktemp("made")
    model = write_pipeline(folder / "model")
    return model, write_data(folder / "data", model)
