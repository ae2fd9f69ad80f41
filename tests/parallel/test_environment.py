"""What ranks tell of their errors where torchrun launched them: what all say once, what one says with its number."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdit_cli.parallel import environment
from vdit_cli.parallel.environment import ERROR_FILE, not_told_yet

TEXT = "error: batch_size is 1\n  from:  a\n  try:   b"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a rank prints of a text, or None."""

    def tell(rank: int, text: str = TEXT, local: int | None = None) -> str | None:
        number = rank if local is None else local
        values = {"RANK": rank, "LOCAL_RANK": number, "WORLD_SIZE": 4}
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv(ERROR_FILE, str(tmp_path / "attempt_0" / str(number) / "error.json"))
        return not_told_yet(text)

    return tell


def test_what_all_ranks_tell_is_told_by_the_first(told, monkeypatch: pytest.MonkeyPatch):
    """The others wait for it, so whoever comes first does not matter."""
    assert told(0) == TEXT and told(1) is None
    other = TEXT.replace("1", "2")

    def first_comes(seconds: float) -> None:
        assert told(0) == TEXT

    monkeypatch.setattr(environment, "GRACE", 1e9)
    assert told(1, other) == other.replace("error: ", "error: rank 1: "), "at once: torchrun ends this rank soon"
    assert told(1, "error: RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]") is None, "no cause"
    monkeypatch.setattr(environment.time, "sleep", first_comes)
    (Path("attempt_0") / "evdit-error.txt").unlink()
    assert told(2) is None


def test_what_one_rank_tells_alone_has_its_number(told, monkeypatch: pytest.MonkeyPatch):
    """The first never tells anything; on a second machine another one is the first."""
    monkeypatch.setattr(environment, "GRACE", 0.0)
    assert told(1) == "error: rank 1: batch_size is 1\n  from:  a\n  try:   b"
    lost = "error: RuntimeError: Connection closed by peer"
    assert told(1, lost) == lost.replace("error: ", "error: rank 1: "), "the first rank may have been killed"
    assert told(2, local=0) == TEXT.replace("error: ", "error: rank 2: ") and told(3, local=1) is None


def test_without_a_place_to_leave_word_each_tells_its_own(told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that is alone, and a file where the folder should be."""
    (tmp_path / "attempt_0").write_text("", encoding="utf-8")
    monkeypatch.setattr(environment, "GRACE", 0.0)
    assert told(0) == TEXT and told(1) == TEXT.replace("error: ", "error: rank 1: ")
    monkeypatch.delenv(ERROR_FILE)
    assert not_told_yet(TEXT) == TEXT
