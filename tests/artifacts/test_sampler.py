"""A student's sampler as a file: what was written is read, and damage is told."""

from pathlib import Path

import pytest

from vdit_cli.artifacts.sampler import FILE, Sampler
from vdit_cli.errors import EvditError


def test_what_was_written_is_read(tmp_path: Path):
    sampler = Sampler("milestones", (999, 499), 1.0)
    sampler.write(tmp_path)
    assert Sampler.read(tmp_path) == sampler and sampler.steps == 2


def test_a_folder_without_one_has_none(tmp_path: Path):
    assert Sampler.read(tmp_path) is None


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [('"timesteps": [\n    999,', '"timesteps": [\n    99,'), ("1.0", '"1.0"'), ("evdit.sampler/1", "evdit.sampler/9")],
)
def test_a_damaged_file_is_told(tmp_path: Path, sound: str, damaged: str):
    Sampler("milestones", (999, 499), 1.0).write(tmp_path)
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert sound in text
    (tmp_path / FILE).write_text(text.replace(sound, damaged), encoding="utf-8")
    with pytest.raises(EvditError) as caught:
        Sampler.read(tmp_path)
    assert caught.value.exit_code == 2 and FILE in (caught.value.where or "")
