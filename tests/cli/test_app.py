"""The front door: exit codes, the form of errors, --debug, Ctrl-C, progress off a terminal, JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vdit_cli import __version__
from vdit_cli.cli import app, console
from vdit_cli.cli.console import Console, duration
from vdit_cli.errors import EvditError, Interrupted


class OutOfMemoryError(RuntimeError):
    """Stands in for torch's, which is known by its name."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Put a command `fail` at the front door that raises the given error."""

    def put(error: BaseException) -> None:
        def command(steps: int = 1) -> None:
            """Fail."""
            raise error

        module = ModuleType("vdit_cli.cli.fail")
        module.command, module.EXAMPLE = command, "evdit fail"
        monkeypatch.setitem(sys.modules, "vdit_cli.cli.fail", module)
        monkeypatch.setattr(app, "COMMANDS", (("fail", "Fail"),))

    return put


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            EvditError("x is y", where="--x y", next_steps=["a", "b"]),
            2,
            "error: x is y\n  from:  --x y\n  try:   a  or  b\n",
        ),
        (EvditError("no GPU", exit_code=3), 3, "error: no GPU\n"),
        (Interrupted("stopped"), 130, "error: stopped\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (MemoryError(), 4, "error: out of memory: MemoryError\n"),
        (OutOfMemoryError("CUDA out of memory.\nTried"), 4, "error: out of memory: CUDA out of memory.\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "error: out of memory: "),
        (OSError(errno.ENOSPC, "No space left on device", "a"), 1, "error: the disk is full: "),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300),
            2,
            f"error: {'n' * 57}... is no path: File name",
        ),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "a"), 2, "error: a is no path: Too many levels"),
        (ValueError("odd\nthing"), 1, "error: ValueError: odd\n"),
    ],
)
def test_every_error_has_its_form_and_exit_code(evdit, failing, error: BaseException, code: int, told: str):
    """One line of what, and never a trace."""
    failing(error)
    found, out, err = evdit("fail")
    assert (found, out) == (code, "") and err.startswith(told) and "Traceback" not in err
    if code == 1 and isinstance(error, ValueError):
        assert "--debug" in err


@pytest.mark.parametrize("args", [("--debug", "fail"), ("fail", "--debug")])
def test_debug_shows_the_trace(evdit, failing, args: tuple[str, ...]):
    """Anywhere on the line."""
    failing(EvditError("x"))
    code, _, err = evdit(*args)
    assert code == 2 and "Traceback" in err and err.endswith("error: x\n")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ((), "missing command"),
        (("nothing",), "unknown command 'nothing'"),
        (("fail", "--stepps", "3"), "no such option: --stepps\n  try:   --steps  or  evdit fail --help"),
        (("fail", "--steps", "x"), "from:  --steps\n  try:   evdit fail --help"),
        (("fail", "more"), "evdit fail --help"),
    ],
)
def test_usage_errors_are_exit_2(evdit, failing, args: tuple[str, ...], told: str):
    """In the same form, with the page that helps."""
    failing(EvditError("never raised"))
    code, out, err = evdit(*args)
    assert (code, out) == (2, "") and err.startswith("error: ") and told in err


def test_an_argument_that_is_not_utf_8_is_exit_2(evdit):
    """As the shell hands over bytes of another encoding: before anything is made that could not be written."""
    code, out, err = evdit("generate", "a red caf\udce9", "-o", "out.mp4")
    assert (code, out) == (2, "")
    assert err.startswith("error: a red caf\\udce9 is not UTF-8 text\n  from:  argument 2\n")


def test_what_an_encoding_lacks_is_written_as_its_number():
    """A pipe of Windows takes neither the prompt nor the path as it is; JSON stays JSON."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    at = Console(out, out)
    at.say("é 漢")
    at.json("evdit.x/1", {"a": "é 漢 😀"})
    line, _, told = out.buffer.getvalue().decode("cp1252").partition("\n")
    assert line == "é \\u6f22"
    assert json.loads(told)["a"] == "é 漢 😀"


def test_version(evdit):
    """On stdout, exit 0."""
    assert evdit("--version") == (0, f"evdit {__version__}\n", "")


def test_first_interrupt_asks_second_quits(capfd: pytest.CaptureFixture[str]):
    """And afterwards Ctrl-C means what it meant before."""
    before = signal.getsignal(signal.SIGINT)
    with Console() as at:
        assert not at.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert at.should_stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again" in capfd.readouterr().err


def test_progress_off_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch):
    """One at the start, one every few seconds, one at the end."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    out, err = io.StringIO(), io.StringIO()
    with Console(out, err) as at:
        at.stage("denoise", 10)
        for step in range(10):
            now[0] += 2
            at.advance(f"loss {step}")
        at.say("a remark")
    assert out.getvalue() == ""
    assert err.getvalue().splitlines() == [
        "denoise: 0/10",
        "denoise: 3/10, 2.0 s each, 14 s left, loss 2",
        "denoise: 6/10, 2.0 s each, 8.0 s left, loss 5",
        "denoise: 9/10, 2.0 s each, 2.0 s left, loss 8",
        "a remark",
        "denoise: 10/10 in 20 s, loss 9",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch):
    """With the note and the time of a unit; remarks stand above it."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    err = io.StringIO()
    err.isatty = lambda: True
    with Console(io.StringIO(), err) as at:
        at.stage("denoise", 2)
        at.advance()
        at.say("a [remark]")
        at.advance("loss [1]")
    assert all(text in err.getvalue() for text in ("denoise", "2/2", "each", "loss [1]", "a [remark]"))


def test_only_the_first_rank_writes(monkeypatch: pytest.MonkeyPatch):
    """The others only mind Ctrl-C."""
    monkeypatch.setenv("RANK", "1")
    out, err = io.StringIO(), io.StringIO()
    with Console(out, err) as at:
        at.stage("x", 1)
        at.advance()
        at.say("y")
        at.data("z")
        at.json("s/1", {})
    assert out.getvalue() + err.getvalue() == ""


def test_json_begins_with_its_schema():
    """On stdout; NaN is refused."""
    out = io.StringIO()
    Console(out, io.StringIO()).json("evdit.x/1", {"a": "é"})
    assert list(json.loads(out.getvalue())) == ["schema", "a"]
    with pytest.raises(ValueError):
        Console(out, io.StringIO()).json("evdit.x/1", {"a": float("nan")})


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.034, "0.034 s"), (3.14, "3.1 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_in_words(seconds: float, text: str):
    """As a person writes them."""
    assert duration(seconds) == text


def test_what_would_steer_the_terminal_is_written_as_its_number(failing, evdit, monkeypatch: pytest.MonkeyPatch):
    """In errors, remarks, labels and notes, on a terminal and off it; lines, tabs and letters of any script stay."""
    failing(EvditError("a \x1b]0;title\x07", where="b\x9b1m", next_steps=["c\x08"]))
    code, _, err = evdit("fail")
    assert code == 2 and err == "error: a \\u001b]0;title\\u0007\n  from:  b\\u009b1m\n  try:   c\\u0008\n"
    lines = io.StringIO()
    with Console(io.StringIO(), lines) as at:
        at.stage("l\x1b[1m", 1)
        at.say("é一\t\u202e\x1b[31m")
        at.advance("n\x1b[1m")
    assert "\x1b" not in lines.getvalue() and "é一\t\\u202e\\u001b[31m" in lines.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    bar = io.StringIO()
    bar.isatty = lambda: True
    with Console(io.StringIO(), bar) as at:
        at.stage("l\x1b]0;t\x07", 1)
        at.say("s\x1b]0;t\x07")
        at.advance("n\x1b]0;t\x07")
    assert "\x1b]0" not in bar.getvalue() and "\x07" not in bar.getvalue() and "s\\u001b]0;t" in bar.getvalue()


@pytest.mark.parametrize(("name", "value"), [("RANK", "abc"), ("RANK", "-1"), ("RANK", "1.5"), ("RANK", "²")])
def test_a_rank_that_is_none(evdit, monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    """Exit 2, with the variable."""
    monkeypatch.setenv(name, value)
    code, _, err = evdit("models")
    told = f"error: {name} is {value!r}: it must be a whole number from 0 on"
    assert code == 2 and err.splitlines() == [told, f"  from:  {name}", f"  try:   unset {name}"]


@pytest.mark.parametrize("kind", [PermissionError, IsADirectoryError, NotADirectoryError])
def test_a_file_that_can_not_be_opened_is_named(failing, evdit, kind: type[OSError]):
    """Wherever it is read: exit 3, no Python in it."""
    failing(kind(errno.EACCES, "Permission denied", "weights.safetensors"))
    code, _, err = evdit("fail")
    told = ["error: weights.safetensors can't be opened: Permission denied", "  from:  weights.safetensors"]
    told += ["  try:   ls -ld weights.safetensors  (whose it is, and who may open it)"]
    assert (code, err.splitlines()) == (3, told)


def test_a_folder_that_was_deleted_is_told(evdit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before any command starts: no relative path leads anywhere from there, and torch would end the process."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, out, err = evdit("status", str(tmp_path))
    told = ["error: the folder that this shell is in is no longer there"]
    assert (code, out, err.splitlines()) == (
        2,
        "",
        [*told, "  try:   cd  (and the same command, with paths from there)"],
    )
