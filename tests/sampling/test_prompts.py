"""Prompts files: where a line ends, and which encodings are refused with which advice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vdit_cli.errors import USAGE, EvditError
from vdit_cli.sampling.prompts import collect_prompts, read_prompts

TEXT = "a large red circle\nein großer Kreis\n"
LINES = ("a large red circle", "ein großer Kreis")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_line_ends_at_a_line_end(tmp_path: Path, end: str, mark: str):
    (tmp_path / "p.txt").write_bytes((mark + f" one{end}{end}two three {end}four").encode())
    assert read_prompts(tmp_path / "p.txt") == ("one", "two three", "four")


@pytest.mark.parametrize("sign", "\f\v\x1c\x1d\x1e\x85\u2028\u2029", ids=ascii)
def test_and_at_no_other_sign(tmp_path: Path, sign: str):
    (tmp_path / "p.txt").write_text(f"one{sign}two\nthree", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == (f"one{sign}two", "three")


def refused(file: Path) -> EvditError:
    with pytest.raises(EvditError) as caught:
        read_prompts(file)
    assert caught.value.exit_code == USAGE and caught.value.where == f"--prompts-file {file}"
    return caught.value


WIDE = {
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-32": "UTF-32",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
}


@pytest.mark.skipif(shutil.which("iconv") is None, reason="needs iconv")
@pytest.mark.parametrize("name", ["prompts.txt", "my prompts.txt", "-x $(touch gone) 'a\".txt"])
@pytest.mark.parametrize("encoding", WIDE)
def test_the_advice_for_wide_encodings_works_when_pasted(tmp_path: Path, encoding: str, name: str):
    """In a shell, in the folder of the file: a copy is made that is read, and every file before it stays as it was."""
    (tmp_path / name).write_bytes(TEXT.encode(encoding))
    taken = Path(name).with_name(f"{Path(name).stem}-utf8.txt")
    taken.write_text("mine")
    error = refused(Path(name))
    assert f"is {WIDE[encoding]} text, not UTF-8" in error.what
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (step,) = error.next_steps
    subprocess.run(["sh", "-c", step], check=True)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.items() < after.items()
    (copy,) = after.keys() - before.keys()
    assert read_prompts(tmp_path / copy) == LINES


@pytest.mark.parametrize(("encoding", "byte"), [("latin-1", "0xdf"), ("gbk", "0xd4")])
def test_an_encoding_that_nothing_tells_is_not_guessed(tmp_path: Path, encoding: str, byte: str):
    """The line and byte are named; the command names no encoding and another file."""
    text = "a red circle\r" + {"latin-1": "großer Kreis", "gbk": "a 在海上航行的船"}[encoding]
    Path("my prompts.txt").write_bytes(text.encode(encoding))
    error = refused(Path("my prompts.txt"))
    assert f"is not UTF-8: line 2 holds the byte {byte}" in error.what
    first, command = error.next_steps
    assert "save it as UTF-8" in first
    assert command == 'iconv -f ITS-ENCODING -t UTF-8 "my prompts.txt" > "my prompts-utf8.txt"'


def test_zero_bytes_are_no_text(tmp_path: Path):
    """Chinese in UTF-16 without a mark, where few signs are ASCII: refused, not guessed."""
    Path("p.txt").write_bytes("一只\u3000猫在\u4e00跑\u4e00".encode("utf-16-le"))
    assert "is not UTF-8" in refused(Path("p.txt")).what


@pytest.mark.parametrize(
    ("prompt", "words"), [("x" * 10_001, "has 10001 signs, and 10000 is the most"), ("\udcff", "is no text")]
)
def test_a_prompt_that_no_model_reads_is_refused(prompt: str, words: str, tmp_path: Path):
    """A megabyte without a space was cleaned for minutes; what UTF-8 can't write failed where it was written."""
    with pytest.raises(EvditError, match=words) as caught:
        collect_prompts(["a", prompt], None)
    assert (caught.value.where, caught.value.exit_code) == ("prompt 2", 2)
    if prompt.isascii():
        (tmp_path / "p.txt").write_text(f"a\n\n{prompt}\n", encoding="utf-8")
        with pytest.raises(EvditError, match=words) as caught:
            read_prompts(tmp_path / "p.txt")
        assert (caught.value.where or "").endswith("p.txt line 3")
        assert caught.value.what.startswith(f"line 3 of {tmp_path / 'p.txt'} ")  # a recipe's line may be the place


def test_a_prompts_file_without_an_end_is_refused(tmp_path: Path):
    """A device; nothing of it is read."""
    (tmp_path / "p.txt").symlink_to("/dev/zero")
    with pytest.raises(EvditError, match="no regular file"):
        read_prompts(tmp_path / "p.txt")
