"""The reader of files from outside: what is read at all, what JSON may hold, and how a form's refusals are told."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from vdit_cli import reader
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.reader import Amount, Count, Seed, Text


@dataclass(frozen=True)
class Part:
    """A form inside another."""

    size: Count

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("13 is no size")


@dataclass(frozen=True)
class Whole:
    """A form with a field of each kind."""

    name: Text
    seed: Seed = 0
    share: Amount = 1.0
    part: Part | None = None
    parts: tuple[Part, ...] = ()
    sizes: tuple[int, ...] = ()
    how: Literal["fast", "slow"] = "fast"
    is_done: bool = False
    notes: dict[str, Any] | None = None


def refused(call: Callable[..., Any], *given: Any) -> EvditError:
    """The error of a call."""
    with pytest.raises(EvditError) as caught:
        call(*given)
    return caught.value


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (os.mkfifo, "it is no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "it is no regular file"),
        (lambda path: path.mkdir(), "can't be read"),
        (lambda path: path.symlink_to(path), "can't be read"),
        (lambda path: None, "can't be read"),
        (lambda path: path.write_bytes(b"\xff"), "it is not UTF-8 text"),
        (lambda path: os.truncate(path, reader.MOST_BYTES + 1) if path.touch() is None else None, "67108865 bytes"),
    ],
)
def test_only_regular_files_of_some_size_are_read(tmp_path: Path, make: Callable[[Path], Any], rule: str):
    """A pipe would be waited for, a device has no end: nothing of them is read."""
    file = tmp_path / "plan.json"
    make(file)
    error = refused(reader.read_text, file, "plan")
    assert rule in error.what and "plan" in error.what and (error.where, error.exit_code) == (str(file), USAGE)


@pytest.mark.parametrize("name", ["a\0b", "n" * 300])
def test_a_name_that_no_file_has_is_refused(name: str):
    """A zero byte, and more signs than a file system takes."""
    assert "can't be read" in refused(reader.read_text, Path(name), "plan").what


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path):
    """As editors of one system write it."""
    (tmp_path / "plan.json").write_text('\ufeff{"name": "x"}', encoding="utf-8")
    assert reader.read(Whole, tmp_path / "plan.json", "plan") == Whole("x")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is empty"),
        ("[]", "it is a JSON list"),
        ("[" * 100_000, "nested in more than 64 levels"),
        ('{"a":' * 100_000, "nested in more than 64 levels"),
        ("null", "it is a JSON null,"),
        ("true", "it is a JSON truth value,"),
        ("1.5", "it is a JSON number,"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested in more than 64 levels"),
        ('{"a": [' + "[" * 64 + "]" * 64 + "]}", "nested in more than 64 levels"),
        ('{"a": 1, "a": 1}', "'a' stands twice"),
        ('{"a": [{"b": NaN}]}', "NaN is no JSON number"),
        ('{"a": 1e400}', "1e400 is no JSON number"),
        (f'{{"a": {10**400}}}', "is no JSON number"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str, rule: str):
    """Told with the file and what it was to be."""
    error = refused(reader.parse, text, "runs/plan.json", "plan")
    assert rule in error.what and error.where == "runs/plan.json" and len(error.what) < 200


def test_json_as_others_write_it_is_read():
    """64 levels, and the whole number that tokenizers have for no limit."""
    deep = '{"a":' * 64 + "1" + "}" * 64
    assert reader.parse(deep, "", "plan")["a"]
    assert reader.parse(f'{{"model_max_length": {int(1e30)}}}', "", "plan") == {"model_max_length": int(1e30)}


UNFIT = [
    ({"name": 7}, " name", "name is 7: it must be a text"),
    ({"name": "n" * 10_001}, " name", "it must be a text of at most 10000 signs"),
    ({"seed": 2**63}, " seed", "it must be a whole number of at most 9223372036854775807"),
    ({"seed": -1}, " seed", "seed is -1: it must be a whole number of at least 0"),
    ({"seed": 8.0}, " seed", "seed is 8.0: it must be a whole number"),
    ({"seed": True}, " seed", "seed is true: it must be a whole number"),
    ({"seed": 1.0}, " seed", "seed is 1.0: it must be a whole number"),
    ({"share": "1"}, " share", "share is '1': it must be a number"),
    ({"share": -0.5}, " share", "share is -0.5: it must be a number of at least 0"),
    ({"part": 7}, " part", "part is 7: it must be an object or null"),
    ({"part": {}}, " part", "size is missing: a plan needs it"),
    ({"part": {"size": 0}}, " part.size", "size is 0: it must be a whole number above 0"),
    ({"part": {"size": 10**6 + 1}}, " part.size", "it must be a whole number of at most 1000000"),
    ({"part": {"size": 13}}, " part", "13 is no size"),
    ({"parts": {}}, " parts", "parts is {}: it must be a list"),
    ({"parts": [{"size": 1}, None]}, " parts 1", "parts 1 is null: it must be an object"),
    ({"parts": [{"size": 1, "siez": 2}]}, " parts 0", "unknown key 'siez': it is none of size"),
    ({"how": "slwo"}, " how", "how is 'slwo': it must be 'fast' or 'slow'"),
    ({"is_done": 0}, " is_done", "is_done is 0: it must be true or false"),
    ({"notes": []}, " notes", "notes is []: it must be an object or null"),
    ({"naem": "x"}, "", "unknown key 'naem'"),
]


@pytest.mark.parametrize(("change", "place", "rule"), UNFIT)
def test_what_does_not_fit_is_told_with_its_place(change: dict[str, Any], place: str, rule: str):
    """File, key, value, and what it must be; the nearest name for an unknown key."""
    error = refused(reader.shaped, Whole, {"name": "x", **change}, "plan.json", "plan")
    assert rule in error.what and error.where == f"plan.json{place}"
    assert "unknown" not in rule or error.next_steps in (("size",), ("name",))


def test_a_missing_key_is_told():
    """With what needs it."""
    assert refused(reader.shaped, Whole, {}, "plan.json", "plan").what == "name is missing: a plan needs it"


def test_a_file_of_another_schema_is_refused(tmp_path: Path):
    """One of this version is read without it; what can be had again is None where it is damaged."""
    file = tmp_path / "whole.json"
    for schema, name in (("evdit.whole/2", "x"), ("evdit.whole/1", 7)):
        file.write_text(f'{{"schema": "{schema}", "name": {name!r}}}'.replace("'", '"'), encoding="utf-8")
        assert reader.kept(Whole, file, "whole", "evdit.whole/1") is None
    file.write_text('{"schema": "evdit.whole/1", "name": "x", "more": 1}', encoding="utf-8")
    assert reader.read_object(Whole, file, "whole", "evdit.whole/1")["more"] == 1
    assert "unknown schema" in refused(reader.read, Whole, file, "whole", "evdit.whole/2").what


def test_a_refusal_may_be_given_advice():
    """And another exit code."""
    with pytest.raises(EvditError) as caught, reader.advising(["fetch it again"], ENVIRONMENT):
        reader.shaped(Whole, {"naem": "x"}, "plan.json", "plan")
    assert (caught.value.next_steps, caught.value.exit_code) == (("name", "fetch it again"), ENVIRONMENT)


def test_pydantic_is_loaded_where_a_file_is_read():
    """Help is as quick as it was: no command's page needs it."""
    program = "import sys, vdit_cli.reader; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
    program = "import sys; from vdit_cli.cli.app import main; main(['--help']); "
    program += "assert not {'pydantic', 'annotated_types', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1], capture_output=True)


def test_a_whole_float_is_told_as_a_whole_number():
    """In an object by its key, in a list alone; another float is not."""
    for content, steps in (
        ({"seed": 8.0}, ('"seed": 8',)),
        ({"seed": 8.5}, ()),
        ({"part": {"size": -2.0}}, ('"size": -2',)),
        ({"sizes": [1, 2.0]}, ("2",)),
    ):
        error = refused(reader.shaped, Whole, {"name": "x", **content}, "x.json", "whole")
        assert error.next_steps == steps


def test_what_is_not_there_or_not_ones_own_comes_with_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At the nearest folder that is there, or at whose the file is."""
    error = refused(reader.read_text, tmp_path / "no" / "plan.json", "plan")
    assert error.next_steps == (f"ls {tmp_path}  (what is there)",)
    error = refused(reader.read_text, tmp_path, "recipe")
    assert error.what == f"{tmp_path} can't be read: Is a directory"
    assert error.next_steps == (f"ls {tmp_path}  (what is in it: a file is needed)",)
    file = tmp_path / "plan.json"
    file.write_text("{}", encoding="utf-8")

    def locked(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", locked)
    error = refused(reader.read_text, file, "plan")
    assert error.what == f"{file} can't be read: Permission denied"
    assert error.next_steps == (f"ls -ld {file}  (whose it is, and who may open it)",)


def test_of_a_log_the_end_alone_is_read_for_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever stands before; a line that was cut short is left out, a damaged one told as any of the log's."""
    log = tmp_path / "metrics.jsonl"
    assert reader.read_last(Part, log, "log") is None
    monkeypatch.setattr(reader, "LONGEST_LINE", 40)
    for content, size in (("{}\n" * 99 + '{"size": 7}\n', 7), ('{"size": 7}\n{"si', 7), ('{"si', None), ("", None)):
        log.write_text(content, encoding="utf-8")
        last = reader.read_last(Part, log, "log")
        assert (last and last["size"]) == size
    for content in (b'{"size": 7}\nx\n', b"x" * 99 + b"\n", b"\xff\n", b'{"size": "7"}\n'):
        log.write_bytes(content)
        with pytest.raises(EvditError) as caught:
            reader.read_last(Part, log, "log")
        assert caught.value.where is not None and caught.value.where.startswith(f"{log} last line")
        assert caught.value.next_steps[-1].startswith(f"mv -n {log} {log}.damaged")
