"""Whether blocks are compiled: what was asked for, what pays, what the machine can."""

import pytest
import torch

from tests.sampling.fakes import GaussianBackbone
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError
from vdit_cli.sampling import compiling
from vdit_cli.sampling.compiling import is_compiled, why_not
from vdit_cli.sampling.sample import SampleSpec
from vdit_cli.timing import Silent

LONG = SampleSpec(29, 720, 1280, 20, 1.0, "ddim")
SHORT = SampleSpec(5, 32, 48, 20, 1.0, "ddim")


@pytest.fixture
def on_gpu(monkeypatch):
    """A backbone that says it is on a GPU, on a machine that can compile."""
    monkeypatch.setattr(compiling, "why_not", lambda on_gpu: None)
    backbone = GaussianBackbone()
    backbone.device = torch.device("cuda")
    return backbone


def test_auto_compiles_long_videos_on_a_gpu_and_says_so(on_gpu):
    progress = Silent()
    assert is_compiled("auto", "none", on_gpu, LONG, progress)
    assert "generate.compile=none" in progress.lines[0]
    assert is_compiled("auto", "model", on_gpu, LONG, Silent())


def test_auto_leaves_short_videos_streamed_blocks_and_the_cpu_alone(on_gpu):
    progress = Silent()
    assert not is_compiled("auto", "none", on_gpu, SHORT, progress)
    assert not is_compiled("auto", "block", on_gpu, LONG, progress)
    assert not is_compiled("none", "none", on_gpu, LONG, progress)
    assert not is_compiled("auto", "none", GaussianBackbone(), LONG, progress)
    assert progress.lines == []


def test_a_machine_that_can_not_compile_is_said(on_gpu, monkeypatch):
    monkeypatch.setattr(compiling, "why_not", lambda on_gpu: "triton is not installed")
    progress = Silent()
    assert not is_compiled("auto", "none", on_gpu, LONG, progress)
    assert progress.lines == ["not compiled, steps take longer: triton is not installed"]
    with pytest.raises(EvditError, match="triton is not installed") as caught:
        is_compiled("blocks", "none", on_gpu, SHORT, progress)
    assert caught.value.exit_code == ENVIRONMENT


def test_blocks_that_come_and_go_are_not_compiled(on_gpu):
    with pytest.raises(EvditError, match="come and go") as caught:
        is_compiled("blocks", "block", on_gpu, LONG, Silent())
    assert caught.value.exit_code == USAGE


def test_what_compiling_needs(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    assert why_not(on_gpu=True) == "triton is not installed"
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert why_not(on_gpu=False) == "there is no C compiler"
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name if name == "/opt/cc" else None)
    for named in ("/opt/cc", "/opt/cc gcc", " /opt/cc -O2"):  # "ccache gcc" is a program and its first word
        monkeypatch.setenv("CC", named)
        assert why_not(on_gpu=False) is None
    for named in ("gcc", "gcc /opt/cc"):
        monkeypatch.setenv("CC", named)
        assert why_not(on_gpu=False) == "there is no C compiler"
