from pathlib import Path

import pytest

from vdit_cli.backbones.registry import ENTRIES, find_source
from vdit_cli.backbones.sources import ASSETS, size_text, weights_missing
from vdit_cli.errors import ENVIRONMENT

RELEASED = find_source("open-sora-plan").entry


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "1 kB"), (400, "1 kB"), (4_300_000, "4.3 MB"), (999_999, "1000 kB"), (11_100_000_000, "11.1 GB")],
)
def test_sizes_read_as_a_person_writes_them(size, text):
    assert size_text(size) == text


def test_embedded_weights_are_in_the_package_and_others_in_the_users_data_folder():
    folders = {entry.name: entry.weights_folder for entry in ENTRIES}
    assert folders["shapes"] == ASSETS / "shapes"
    assert folders["open-sora-plan"].parts[-2:] == ("models", "open-sora-plan-v1.2.0")
    assert "evdit" in folders["open-sora-plan"].parts
    assert folders["open-sora-plan"] == folders["open-sora-plan-93"]


def test_missing_weights_name_each_file_its_size_and_its_place(monkeypatch, tmp_path):
    monkeypatch.setattr("vdit_cli.backbones.sources.user_data_path", lambda *_, **__: tmp_path)
    folder = tmp_path / "models" / "open-sora-plan-v1.2.0"
    (folder / "vae").mkdir(parents=True)
    (folder / "vae" / "config.json").write_text("{}", encoding="utf-8")
    missing = RELEASED.missing_files()
    assert "vae/config.json" not in [needed.path for needed in missing]
    error = weights_missing(RELEASED, missing)
    text = error.text()
    assert error.exit_code == ENVIRONMENT
    assert f"{len(missing)} files, about 63.7 GB" in text
    assert "29x720p/diffusion_pytorch_model.safetensors (about 11.1 GB)" in text
    assert "mt5-xxl/spiece.model (about 4.3 MB)" in text
    assert f"put them into {folder}" in text
    assert "--model LanguageBind/Open-Sora-Plan-v1.2.0 --text-encoder google/mt5-xxl" in text


def test_missing_embedded_weights_say_how_to_make_them():
    shapes = find_source("shapes").entry
    error = weights_missing(shapes, list(shapes.files[:1]))
    assert "1 file" in error.what
    assert "evdit train-shapes" in error.text()
    assert "hub" not in error.text()


def test_paths_of_needed_files_stay_in_their_folder():
    for entry in ENTRIES:
        for needed in entry.files:
            assert not Path(needed.path).is_absolute()
            assert ".." not in Path(needed.path).parts
