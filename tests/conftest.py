"""What every test may use. No test reaches the network, and none writes outside its temporary folder."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from vdit_cli.cli.app import main

if shutil.which("nvidia-smi") is None:  # no GPU: Triton's interpreter, which is chosen when something imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nothing that a slow machine or chance could decide.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--shuffle 7`: the files, and the tests in each, in an order drawn with that seed."""
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run files and the tests in them in a random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files stay whole, so that what their tests share is made once."""
    seed = config.getoption("--shuffle")
    if seed is not None:
        draw = random.Random(seed)
        draw.shuffle(items)
        place = {file: draw.random() for file in dict.fromkeys(item.path for item in items)}
        items.sort(key=lambda item: place[item.path])


def pytest_collection_finish() -> None:
    """Keep what stays for the whole run out of the garbage collector's way: freeing a model's part calls it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """As it was, for what modules do when Python ends."""
    gc.unfreeze()


@pytest.fixture
def evdit(capfd: pytest.CaptureFixture[str]):
    """Run a command line in this process: `code, out, err = evdit("models", "--json")`."""

    def run(*args: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(args)
        told = capfd.readouterr()
        return code, told.out, told.err

    return run


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test stands in a folder of its own, so that a default place for results never lands in the repository."""
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture(autouse=True, scope="session")
def own_cost_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times that tests measure never reach the user's cache folder, by which `auto` would choose."""
    from vdit_cli.attention import costs

    folder = tmp_path_factory.mktemp("user-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "user_cache_path", lambda *_, **__: folder)
        yield


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this machine answers: a connection to any other address is an error."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"a test tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
