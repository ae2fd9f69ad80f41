"""A hub on the loopback device; what is asked of it in processes of its own finds its address in the environment."""

import json
import os
import subprocess
import sys

import pytest

from tests.hub_stand_in import COMMIT, StandIn, ask_here, serving
from tests.tiny_pipeline import write_published
from vdit_cli.backbones.hub import list_files
from vdit_cli.backbones.registry import find_source, open_backbone
from vdit_cli.errors import ENVIRONMENT, FAILED, USAGE, EvditError
from vdit_cli.timing import Silent

ASK = """
import json, sys
from vdit_cli.backbones import hub
from vdit_cli.errors import EvditError
from vdit_cli.timing import Silent

model, suffixes = sys.argv[1], tuple(sys.argv[2:])
progress = Silent()
answer = {}
try:
    listing = hub.list_files(model, progress)
    answer["files"] = dict(listing.files)
    answer["folder"] = str(hub.fetch(listing, [path for path in listing.files if path.endswith(suffixes)], progress))
except EvditError as error:
    answer["error"], answer["code"] = error.text(), error.exit_code
print(json.dumps({**answer, "said": progress.lines, "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A published folder with a text encoder in it, code and pickles beside the weights."""
    folder = write_published(tmp_path_factory.mktemp("published") / "model", with_text=True)
    (folder / "29x720p" / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling.py").write_text("raise SystemExit", encoding="utf-8")
    return folder


def ask(code, url, home, *arguments, **environment):
    changes = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=kept | changes | environment, capture_output=True, encoding="utf-8", check=False)


def answer_of(url, home, *arguments, **environment):
    done = ask(ASK, url, home, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_only_what_is_asked_for_is_fetched_once_and_works_without_the_hub_afterwards(published, tmp_path):
    with serving(StandIn({"own/tiny": published})) as hub:
        first = answer_of(hub.url, tmp_path, "own/tiny", "vae/config.json", "29x720p/config.json")
        assert first["folder"].endswith(f"models--own--tiny/snapshots/{COMMIT}")
        assert first["said"][0].startswith("fetching 2 kB of own/tiny (2 files)")
        assert sorted(hub.fetched) == ["29x720p/config.json", "vae/config.json"]
        second = answer_of(hub.url, tmp_path, "own/tiny", "vae/config.json")
        assert second["said"] == []
        assert len(hub.fetched) == 2
        assert not first["torch"]
    for offline in ({}, {"HF_HUB_OFFLINE": "1"}):
        later = answer_of(hub.url, tmp_path, "own/tiny", "vae/config.json", **offline)
        assert later["folder"] == first["folder"]
        assert set(later["files"]) == {"29x720p/config.json", "vae/config.json"}
        assert "does not answer" in later["said"][0]


def test_refusals_of_the_hub_name_the_next_step(published, tmp_path):
    with serving(StandIn({"own/tiny": published}, gated=("own/gated",), broken=("vae/config.json",))) as hub:
        gated = answer_of(hub.url, tmp_path, "own/gated", ".json")
        absent = answer_of(hub.url, tmp_path, "own/absent", ".json")
        wrong = answer_of(hub.url, tmp_path, "own--x/a..b", ".json")
        broken = answer_of(hub.url, tmp_path, "own/tiny", "vae/config.json")
    assert gated["code"] == absent["code"] == broken["code"] == ENVIRONMENT
    assert "approved accounts" in gated["error"] and "hf auth login" in gated["error"]
    assert "no such model" in absent["error"] and "spelling" in absent["error"]
    assert wrong["code"] == USAGE
    assert "vae/config.json can't be fetched" in broken["error"]
    unreachable = answer_of(hub.url, tmp_path / "other", "own/tiny", ".json")
    assert unreachable["code"] == ENVIRONMENT
    assert hub.url in unreachable["error"] and "with a connection" in unreachable["error"]


def test_a_folder_that_is_not_there_is_said(monkeypatch, tmp_path, evdit):
    """A path of two names is a hub id: also where the hub does not answer, with the folder that may have been meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my runs").mkdir()
    (tmp_path / "runs" / "shapes two").mkdir(parents=True)
    with serving(StandIn({})) as hub:
        ask_here(hub.url, tmp_path / "hub", monkeypatch)
        code, _, err = evdit("generate", "a red circle", "--model", "runs/shapess", "-o", "v.mp4")
        assert code == ENVIRONMENT and "private, and there is no folder runs/shapess here\n" in err
        assert 'try:   "runs/shapes two", which is a folder here  or  check the spelling' in err
    code, _, err = evdit("generate", "a red circle", "--model", "run/shapes", "-o", "v.mp4")
    assert code == ENVIRONMENT and "; there is no folder run/shapes here\n" in err
    assert "try:   the same command again with a connection" in err


def test_a_part_of_a_model_that_was_fetched_serves_without_the_hub(monkeypatch, tmp_path):
    """`hf download --include` leaves a snapshot that its own library calls incomplete; what is there is taken."""
    from huggingface_hub import errors

    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}", encoding="utf-8")

    def incomplete(*given, **named):
        raise errors.IncompleteSnapshotError("1 file is missing", snapshot_path=str(tmp_path))

    monkeypatch.setattr("huggingface_hub.snapshot_download", incomplete)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    listing = list_files("own/tiny", Silent())
    assert (listing.local, dict(listing.files)) == (tmp_path, {"vae/config.json": 2})


def test_paths_that_leave_the_folder_are_not_even_listed(published, tmp_path):
    names = ("../evil.json", "/etc/evil.json", "vae/../../evil.json", "C:evil.json", "a\\..\\evil.json")
    with serving(StandIn({"own/tiny": published}, extra_names=names)) as hub:
        listed = answer_of(hub.url, tmp_path, "own/tiny", "vae/config.json")["files"]
    assert not [path for path in listed if "evil" in path]
    assert "modeling.py" in listed


def test_a_disk_that_is_too_full_is_said_before_anything_is_fetched(published, tmp_path):
    lie = ASK.replace(
        "import json, sys", "import json, sys, shutil\nshutil.disk_usage = lambda _: type('U', (), {'free': 9})"
    )
    with serving(StandIn({"own/tiny": published})) as hub:
        done = json.loads(ask(lie, hub.url, tmp_path, "own/tiny", ".safetensors").stdout)
        assert hub.fetched == []
    assert done["code"] == FAILED
    assert "of disk" in done["error"]


def test_a_model_opens_by_hub_id_with_the_folder_that_fits(published, tmp_path, monkeypatch):
    progress = Silent()
    with serving(StandIn({"own/tiny": published})) as hub:
        ask_here(hub.url, tmp_path, monkeypatch)
        backbone = open_backbone(find_source("own/tiny"), device="cpu", video_frames=93, progress=progress)
    assert (backbone.name, backbone.transformer_folder.name) == ("open-sora-plan-93", "93x720p")
    assert len(backbone.encode_text(["a red circle"]).states_BLC) == 1
    assert progress.lines[0].startswith("fetching")
    folders = {name.split("/")[0] for name in hub.fetched}
    assert folders == {"93x720p", "vae", "mt5-xxl"}
    assert not [name for name in hub.fetched if name.endswith((".bin", ".py"))]


def test_without_a_text_encoder_nothing_is_fetched_and_with_one_by_id_it_is(published, tmp_path, monkeypatch):
    bare = write_published(tmp_path / "bare", sizes=("29x720p",))
    with serving(StandIn({"own/bare": bare, "text/mt5": published / "mt5-xxl"})) as hub:
        ask_here(hub.url, tmp_path, monkeypatch)
        with pytest.raises(EvditError) as refused:
            open_backbone(find_source("own/bare"), device="cpu")
        assert refused.value.exit_code == ENVIRONMENT
        assert "--text-encoder google/mt5-xxl" in refused.value.text()
        assert hub.fetched == []
        backbone = open_backbone(find_source("own/bare"), device="cpu", text_encoder="text/mt5")
    assert (backbone.name, backbone.transformer_folder.name) == ("open-sora-plan", "29x720p")
    assert len(backbone.encode_text(["a red circle"]).states_BLC) == 1
    assert "model.safetensors" in hub.fetched
