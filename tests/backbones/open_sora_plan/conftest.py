import pytest

from tests.tiny_pipeline import write_pipeline, write_published


@pytest.fixture(scope="session")
def ours(tmp_path_factory):
    """A tiny pipeline folder in our layout; copy it before changing it."""
    return write_pipeline(tmp_path_factory.mktemp("ours") / "model")


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A tiny model in the published layout, two sizes and a text encoder; copy it before changing it."""
    return write_published(tmp_path_factory.mktemp("published") / "model", with_text=True)
