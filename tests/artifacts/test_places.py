"""Folders of a person who has no home: containers run as users without a name."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
from pathlib import Path

import pytest

from vdit_cli.artifacts.places import expanded, user_cache_path, user_data_path
from vdit_cli.backbones import hub
from vdit_cli.errors import DONE, USAGE, EvditError


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> Path:
    """No HOME, no XDG folders, no entry for this user; returns where its folders then are."""

    def no_entry(user: object) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setattr(pwd, "getpwnam", no_entry)
    return Path(tempfile.gettempdir()) / f"evdit-{os.getuid()}"


def test_folders_of_a_user_without_a_home(homeless: Path, monkeypatch):
    """In the temporary folder, by the user's number; the hub's cache too, which would be a folder called ~."""
    assert (user_data_path(), user_cache_path()) == (homeless / "data", homeless / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    assert hub.cache_folder() == homeless / "cache" / "hub"


def test_folders_of_a_user_with_a_home(tmp_path: Path, monkeypatch):
    """Where the system has them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert tmp_path in user_data_path().parents and tmp_path in user_cache_path().parents
    assert expanded("~/model", "--model ~/model") == tmp_path / "model"


def test_commands_work_without_a_home(evdit, homeless: Path):
    """And say where models are looked for."""
    code, out, err = evdit("models", "--json")
    assert code == DONE, err
    assert str(homeless / "data") in out
    code, out, err = evdit("doctor", "--json")
    found = {finding["name"]: finding["found"] for finding in json.loads(out)["findings"]}
    assert code == DONE and str(homeless / "data" / "models") in found["models"]


@pytest.mark.parametrize("flag", ["--model", "--checkpoint", "--text-encoder"])
def test_a_path_in_a_home_that_is_not_known(evdit, homeless: Path, flag: str):
    """Exit 2, with the flag."""
    code, _, err = evdit("generate", "red", flag, "~nobody-of-this-name/model", "-o", "out.mp4")
    assert code == USAGE and f"from:  {flag} ~nobody-of-this-name/model" in err
    with pytest.raises(EvditError, match="home folder that is not known"):
        expanded("~/model", flag)


def test_no_folder_is_made_for_a_home_that_is_not_known(evdit, homeless: Path, tmp_path: Path, monkeypatch):
    """Wherever a flag or a word is a path; a home that is known is taken, also where the shell has left its sign."""
    for command in (["generate", "red", "-o", "~nobody-of-this-name/x.gif"], ["status", "~nobody-of-this-name/x.gif"]):
        code, _, err = evdit(*command)
        flag = "-o " if "-o" in command else ""
        assert code == USAGE and f"from:  {flag}~nobody-of-this-name/x.gif\n" in err
        assert "try:   './~nobody-of-this-name/x.gif'  (one of that name, here)" in err
        assert list(Path().iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    code, _, err = evdit("status", "~/run")
    assert code == USAGE and f"{tmp_path / 'home' / 'run'} is no run" in err
