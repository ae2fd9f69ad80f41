"""Ranks without torch in them, so that a launch is quick: errors, exit codes, Ctrl-C, what can't be launched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.parallel.environment import LAUNCHER
from vdit_cli.parallel.launch import check_devices, launch, launched

ROOT = Path(__file__).parents[2]

FAILING = """
import os, signal, sys
from vdit_cli.cli.app import explain
from vdit_cli.errors import EvditError
from vdit_cli.parallel import environment
environment.GRACE = float(os.environ.get("GRACE", "0"))
if os.environ["RANK"] == "1":
    sys.exit(explain(EvditError("tile 3 is odd", where="plan.json", next_steps=["mend it"], exit_code=5)))
signal.pause()
"""

PRESSED = """
import os, signal, sys
from pathlib import Path
me, folder = os.environ["RANK"], Path(sys.argv[1])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
(folder / f"ready{me}").touch()
if me == "0":
    while not (folder / "ready1").exists():
        os.sched_yield()
    os.kill(int(os.environ["EVDIT_LAUNCHER"]), signal.SIGINT)
signal.sigwait([signal.SIGINT])
(folder / f"heard{me}").write_text(str(os.getpid()))
"""


def script(folder: Path, text: str) -> str:
    """A file with that program."""
    path = folder / "program.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_first_error_ends_all_ranks_and_is_the_launcher_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd):
    """Rank 1 fails while rank 0 would wait for ever; nothing is printed but by whom the error reaches."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(EvditError) as caught:
        launch(2, [script(tmp_path, FAILING)])
    assert caught.value.text() == "error: tile 3 is odd\n  from:  plan.json\n  try:   mend it"
    assert caught.value.exit_code == 5
    assert capfd.readouterr() == ("", "")
    assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


@pytest.mark.parametrize(
    ("raises", "grace", "told"),
    [("True", "1e9", "error: tile 3 is odd"), ('os.environ["RANK"] == "1"', "0", "error: rank 1: tile 3 is odd")],
)
def test_under_torchrun_an_error_is_told_once(tmp_path: Path, raises: str, grace: str, told: str):
    """Of all ranks by the first; of one rank alone with its number."""
    program = FAILING.replace('os.environ["RANK"] == "1"', raises)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    given = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GRACE": grace}
    done = subprocess.run([*command, script(tmp_path, program)], env=given, capture_output=True, text=True, timeout=300)
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [told], done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_reaches_every_rank_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pressed on the launcher; what it sends is counted."""
    sent: list[tuple[int, int]] = []
    kill = os.kill
    monkeypatch.setattr(os, "kill", lambda process, number: (sent.append((process, number)), kill(process, number)))
    launch(2, [script(tmp_path, PRESSED), str(tmp_path)])
    heard = [int((tmp_path / f"heard{rank}").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert [sent.count((process, signal.SIGINT)) for process in heard] == [1, 1]


@pytest.mark.skipif(os.name != "posix", reason="process groups of POSIX")
def test_a_rank_does_not_outlive_its_launcher():
    """Its parent is not the launcher that it was told of: it ends."""
    program = (
        "import signal; from vdit_cli.parallel.environment import watch_launcher; watch_launcher(); signal.pause()"
    )
    environment = {**os.environ, LAUNCHER: "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=300)
    assert done.returncode == -signal.SIGTERM


def test_what_needs_no_launch(monkeypatch: pytest.MonkeyPatch):
    """No number, one, or a process that is a rank already, whoever started it."""
    assert not launched(None, "auto") and not launched(1, "cpu")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launched(2, "cpu")


def test_devices_that_ranks_can_not_have(monkeypatch: pytest.MonkeyPatch):
    """One GPU by number; more GPUs than there are."""
    with pytest.raises(EvditError, match="can't share the device cuda:1") as caught:
        check_devices(2, "cuda:1")
    assert caught.value.exit_code == USAGE
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_devices(2, "auto")
    with pytest.raises(EvditError, match="needs 4 CUDA GPUs: this machine has 2") as caught:
        check_devices(4, "cuda")
    assert caught.value.exit_code == ENVIRONMENT and "--gpus 2" in caught.value.next_steps


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"RANK": "0", "WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        ({"RANK": "0", "LOCAL_RANK": "1e3", "WORLD_SIZE": "2"}, "LOCAL_RANK is '1e3'"),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK=2, LOCAL_RANK=0, WORLD_SIZE=2"),
        ({"RANK": "0", "LOCAL_RANK": "2", "WORLD_SIZE": "2"}, "RANK=0, LOCAL_RANK=2, WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0, LOCAL_RANK=, WORLD_SIZE=0"),
    ],
)
def test_numbers_of_ranks_that_can_not_be(monkeypatch: pytest.MonkeyPatch, values: dict[str, str], says: str):
    """Refused before anything waits for ranks that never come."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EvditError, match=says) as caught:
        launched(2, "cpu")
    assert caught.value.exit_code == USAGE


def test_another_number_of_ranks_than_were_started_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Under torchrun --gpus would change nothing; the same number is what the ranks of --gpus have."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not launched(2, "cpu") and not launched(None, "cpu")
    for gpus in (1, 3):
        with pytest.raises(EvditError, match=f"--gpus {gpus} starts .* one of 2 that were started") as caught:
            launched(gpus, "cpu")
        assert caught.value.exit_code == USAGE
