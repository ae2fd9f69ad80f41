import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.closeness import assert_close
from tests.tiny_pipeline import INDEX
from vdit_cli.backbones.registry import ENTRIES, all_entries, find_source, open_backbone
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.tiles.grid import VideoGrid

OTHER_BACKBONE = """
from vdit_cli.backbones.sources import BackboneEntry

ENTRY = BackboneEntry(
    name="other-video", module="other_video", parameters=5, video_frames=1, height=16, width=16, tokens=1,
    licence="MIT", folder="models/other", files=(), pipeline_class="OtherPipeline",
)
NO_ENTRY = 7

def load(source, options):
    return source, options
"""


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """Installs a package whose entry points add a backbone, one that is no entry and one that can't be imported."""

    def install(points):
        info = tmp_path / "other_video-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-video\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[evdit.backbones]\n{points}\n", encoding="utf-8")
        (tmp_path / "other_video.py").write_text(OTHER_BACKBONE, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "other_video", raising=False)

    return install


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_entries_tell_the_tokens_of_their_size(entry):
    grid = VideoGrid((entry.video_frames - 1) // 4 + 1, entry.height // 16, entry.width // 16)
    assert entry.tokens == grid.tokens
    assert find_source(entry.name).entry is entry
    assert entry.files and entry.licence


@pytest.mark.numerical
def test_the_released_transformer_has_the_parameters_that_its_entry_says():
    """Counted from the layer list of the design: 16 C^2 a block, and what surrounds the blocks."""
    width, layers, caption, heads_out = 24 * 96, 32, 4096, 2 * 2 * 4
    attention = 2 * 4 * (width * width + width)
    feed_forward = 2 * 4 * width * width + 5 * width
    block = attention + feed_forward + 6 * width
    time = 256 * width + width + width * width + width + 6 * (width * width + width)
    text = caption * width + width + width * width + width
    ends = 4 * 4 * width + width + 2 * width + width * heads_out + heads_out
    total = layers * block + time + text + ends
    assert_close(find_source("open-sora-plan").entry.parameters, total, rtol=0.01)


def test_a_folder_is_a_folder_and_a_name_wins_over_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    (tmp_path / "mine").mkdir()
    assert find_source("shapes").kind == "registered"
    for model in ("./shapes", "mine", str(tmp_path / "mine")):
        source = find_source(model)
        assert source.kind == "folder"
        assert source.folder == Path(model)
    assert find_source(".").name == tmp_path.name


def test_owner_and_name_are_a_hub_id_unless_such_a_folder_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = find_source("LanguageBind/Open-Sora-Plan-v1.2.0")
    assert (source.kind, source.hub_id, source.folder) == ("hub", "LanguageBind/Open-Sora-Plan-v1.2.0", None)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert find_source("owner/name").kind == "folder"


def test_other_names_are_refused_with_the_nearest_ones():
    with pytest.raises(EvditError) as caught:
        find_source("open-sora")
    assert caught.value.exit_code == USAGE
    assert caught.value.next_steps[0] == "open-sora-plan"
    assert "unknown model 'open-sora'" in caught.value.what


@pytest.mark.parametrize("model", ["", "/no/such/folder", "./no", "~/no/such", "a/b/c", "owner/na me", "../x"])
def test_what_is_neither_name_nor_folder_nor_hub_id_is_refused(model):
    with pytest.raises(EvditError) as caught:
        find_source(model)
    assert caught.value.exit_code == USAGE
    assert caught.value.next_steps


def test_a_file_is_refused_with_its_folder(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(EvditError, match="is a file") as caught:
        find_source(str(file))
    assert caught.value.next_steps == (f"--model {tmp_path}",)


def test_another_package_adds_a_backbone(other_package, tmp_path):
    other_package("other-video = other_video:ENTRY")
    source = find_source("other-video")
    assert (source.kind, source.module) == ("registered", "other_video")
    assert all_entries()[-1].name == "other-video"
    assert open_backbone(source, device="cpu", offload="model")[1].offload == "model"
    with pytest.raises(EvditError) as caught:
        find_source("other-vid")
    assert caught.value.next_steps[0] == "other-video"
    (tmp_path / "theirs").mkdir()
    index = json.dumps(INDEX | {"_class_name": "OtherPipeline"})
    (tmp_path / "theirs" / "model_index.json").write_text(index, encoding="utf-8")
    assert find_source(str(tmp_path / "theirs")).module == "other_video"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_module:ENTRY", "No module named 'no_such_module'"),
        ("other_video:ABSENT", "ABSENT"),
        ("other_video:NO_ENTRY", "is a int, not a BackboneEntry"),
    ],
)
def test_a_broken_backbone_of_another_package_names_its_entry_point(other_package, value, says):
    other_package(f"broken = {value}")
    with pytest.raises(EvditError, match=says) as caught:
        find_source("broken")
    assert caught.value.exit_code == ENVIRONMENT
    assert value in caught.value.where


def test_a_broken_package_does_not_stand_in_the_way_of_other_names(other_package):
    other_package("broken = no_such_module:ENTRY")
    assert find_source("shapes").kind == "registered"
    assert find_source("owner/name").kind == "hub"


def test_finding_a_source_imports_no_torch():
    code = (
        "import sys; from vdit_cli.backbones.registry import find_source; "
        "find_source('shapes'); find_source('a/b'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_table_is_a_literal():
    tree = ast.parse(Path(sys.modules["vdit_cli.backbones.registry"].__file__).read_text(encoding="utf-8"))
    tables = [node for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "ENTRIES"]
    assert [type(node.value) for node in tables] == [ast.Tuple]
