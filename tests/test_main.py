"""`evdit` as a process: Ctrl-C in its first and last moments, and streams that are closed or lose their reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EVDIT = [sys.executable, "-m", "vdit_cli"]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and descriptors of POSIX")


@posix
@pytest.mark.parametrize("module", ["typer.core", "vdit_cli.errors", "vdit_cli.cli.app"])
def test_ctrl_c_while_python_imports(module: str):
    """One line, exit 130 and no trace. `-X importtime` tells when a module is there."""
    command = [sys.executable, "-X", "importtime", "-m", "vdit_cli", "models"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        if line.split("|")[-1].strip() == module:
            process.send_signal(signal.SIGINT)
        if not line.startswith("import time:"):
            told.append(line)
    assert process.wait() == 130, told
    assert told[0] == "error: interrupted\n" and "Traceback" not in "".join(told)


@posix
def test_ctrl_c_while_python_ends():
    """The command has ended: its exit code stands, and nothing is added."""
    program = (
        "import atexit, sys\n"
        "atexit.register(lambda: (print('leaving', flush=True), sys.stdin.read()))\n"
        "from vdit_cli.__main__ import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", program, "masks", "show", "nowhere.json"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, encoding="utf-8", **pipes)
    assert process.stdout is not None and process.stdout.readline() == "leaving\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 2 and "nowhere.json" in err and "Traceback" not in err


@posix
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_nothing_but_what_is_read(closed: str):
    """The exit code stays, and no file gets the number of a closed stream."""
    for args, code in (("models", 0), ("masks show nowhere.json", 2)):
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" -m vdit_cli {args} {closed}', sys.executable], capture_output=True
        )
        assert done.returncode == code, done
        assert (done.stdout == b"") == (">&-" in closed.replace("2>&-", "") or code == 2)
    program = "import os; from vdit_cli.__main__ import open_closed_streams; open_closed_streams()\n"
    program += "open('x', 'w').fileno() > 2 or os._exit(9)\nprint('nowhere')"
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program])
    assert done.returncode == 0


@posix
@pytest.mark.parametrize("stream", ["out", "err"])
def test_a_reader_that_goes_away_stops_nothing(stream: str):
    """`evdit ... | head -1`: what it did not read is lost, and nothing else."""
    program = (
        "import sys\n"
        "from vdit_cli.cli.console import Console\n"
        "console = Console()\n"
        "sys.stdin.read()\n"
        "for number in range(9):\n"
        "    console.data('x' * 99); console.say('x' * 99)\n"
        "console.stage('part', 1); console.advance(); console.end_stage()\n"
        "open('finished', 'w').close()\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", program], **pipes)
    gone, kept = (process.stdout, process.stderr) if stream == "out" else (process.stderr, process.stdout)
    assert gone is not None and kept is not None and process.stdin is not None
    gone.close()
    process.stdin.close()
    assert kept.read().count(b"x" * 99) == 9 and process.wait() == 0
    assert Path("finished").exists()


@posix
def test_messages_to_a_full_disk_stop_nothing():
    """`2> /dev/full`, where there is such a file."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = subprocess.run(["sh", "-c", 'exec "$0" -m vdit_cli masks show nowhere 2> /dev/full', sys.executable])
    assert done.returncode == 2


@posix
@pytest.mark.parametrize("words", ["--version", "--help", "masks show --help", "models", "models --json"])
def test_a_result_that_can_not_be_written_is_told(words: str):
    """`> /dev/full`: no disk of ours is full."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = f'exec "$0" -m vdit_cli {words} > /dev/full'
    done = subprocess.run(["sh", "-c", command, sys.executable], stderr=subprocess.PIPE, text=True)
    first, *_ = done.stderr.splitlines()
    assert (done.returncode, first) == (1, "error: the result can't be written to stdout: No space left on device")
    assert "Exception ignored" not in done.stderr
