import json
import subprocess
import sys

import pytest

from vdit_cli.backbones.registry import ENTRIES
from vdit_cli.cli.app import main
from vdit_cli.cli.models import count_text, table
from vdit_cli.errors import DONE


@pytest.fixture
def data_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("vdit_cli.backbones.sources.user_data_path", lambda *_, **__: tmp_path)
    return tmp_path


def test_the_table_has_a_line_a_model_with_its_size_and_tokens(capsys, data_folder):
    assert main(["models"]) == DONE
    printed = capsys.readouterr()
    header, *lines = printed.out.splitlines()
    assert header.split()[:2] == ["name", "parameters"]
    assert [line.split()[0] for line in lines] == [entry.name for entry in ENTRIES]
    assert "29 x 720 x 1280" in lines[1] and "28,800" in lines[1] and "2.8 B" in lines[1]
    assert "missing 63.7 GB" in lines[1]
    assert printed.err == ""


def test_weights_that_are_here_are_said_to_be_here(capsys, data_folder):
    released = ENTRIES[1]
    for needed in released.files:
        path = released.weights_folder / needed.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert main(["models", "--json"]) == DONE
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "evdit.models/1"
    models = {model["name"]: model for model in told["models"]}
    assert models["open-sora-plan"]["weights_here"]
    assert not models["open-sora-plan-93"]["weights_here"]
    missing = [file["path"] for file in models["open-sora-plan-93"]["files"] if not file["here"]]
    assert missing == ["93x720p/config.json", "93x720p/diffusion_pytorch_model.safetensors"]
    assert str(data_folder) in models["open-sora-plan"]["folder"]


def test_columns_are_as_wide_as_their_widest_cell():
    assert table([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]
    assert (count_text(2_770_000_000), count_text(11_900_000)) == ("2.8 B", "11.9 M")


def test_the_command_needs_no_torch():
    code = "import sys; from vdit_cli.cli.app import main; main(['models']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert "shapes" in done.stdout
