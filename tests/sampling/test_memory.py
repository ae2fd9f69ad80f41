"""What a generation will need, what would make it fit, and what it took."""

import threading
from types import SimpleNamespace

import pytest
import torch

from tests.sampling.fakes import GaussianBackbone
from vdit_cli.errors import OUT_OF_MEMORY, EvditError
from vdit_cli.sampling import memory, peak
from vdit_cli.sampling.memory import WORK_SPACE, Placing, check_memory, fitting, free_bytes, needed
from vdit_cli.sampling.peak import PeakMemory, out_of_memory_told
from vdit_cli.sampling.sample import SampleSpec

SPEC = SampleSpec(video_frames=9, height=64, width=64, steps=4, guidance=4.0, scheduler="ddim")
PIXELS = 9 * 64 * 64


def test_needed_bytes_by_stage():
    """Parts of the fake: text 3000, transformer 2000, VAE 1000; a byte a pixel and video to run either network."""
    backbone = GaussianBackbone()
    frames_made = 3 * PIXELS * (4 + 4 + 1)
    none = needed(backbone, SPEC, Placing("none", False, 2))
    assert none["text"] == 3000
    assert none["denoise"] == 2000 + 1000 + int(WORK_SPACE * 4 * PIXELS)
    assert none["decode"] == 1000 + 2000 + int(WORK_SPACE * (PIXELS + frames_made))
    alone = needed(backbone, SPEC, Placing("model", True, 1))
    assert alone["denoise"] == 2000 + int(WORK_SPACE * 2 * PIXELS)
    assert alone["decode"] == 1000 + int(WORK_SPACE * (PIXELS // 4 + frames_made))
    assert needed(backbone, SPEC, Placing("block", True, 1))["denoise"] == 2000 + int(WORK_SPACE * 2 * PIXELS)
    unguided = SampleSpec(9, 64, 64, 4, 1.0, "ddim")
    assert needed(backbone, unguided, Placing("model", True, 1))["denoise"] == 2000 + int(WORK_SPACE * PIXELS)


def test_flags_that_would_fit_really_fit():
    backbone = GaussianBackbone()
    backbone.bytes_of = {"text": 10, "transformer": 10 * PIXELS, "vae": 50 * PIXELS}
    asked = Placing("none", False, 8)
    most = max(needed(backbone, SPEC, asked).values())
    seen = set()
    for free in range(0, most, most // 40):
        for flags in fitting(backbone, SPEC, asked, free):
            seen.add(flags)
            words = flags.split()
            placing = Placing(
                words[words.index("--offload") + 1] if "--offload" in words else "none",
                "--vae-tiling" in words,
                int(next((word.split("=")[1] for word in words if "batch=" in word), 8)),
            )
            spec = SampleSpec(
                int(words[words.index("--frames") + 1]) if "--frames" in words else 9,
                int(words[words.index("--height") + 1]) if "--height" in words else 64,
                int(words[words.index("--width") + 1]) if "--width" in words else 64,
                *(4, 4.0, "ddim"),
            )
            assert max(needed(backbone, spec, placing).values()) <= free
    assert len(seen) >= 4


def test_what_can_not_fit_is_exit_4_before_loading(monkeypatch):
    backbone = GaussianBackbone()
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    with pytest.raises(EvditError, match=r"9 frames of 64 x 64 need about 1 MiB to decode") as caught:
        check_memory(backbone, SPEC, Placing("none", False, 1))
    assert caught.value.exit_code == OUT_OF_MEMORY
    assert caught.value.next_steps == ("a machine with 1 MiB of memory",)
    assert backbone.loads == []
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    assert max(check_memory(backbone, SPEC, Placing("none", False, 1)).values()) < 10**9


def test_a_container_s_limit_counts_as_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=70_000))
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("1000\n", encoding="ascii")
    assert free_bytes(torch.device("cpu")) == 70_000
    (tmp_path / "memory.max").write_text("5000\n", encoding="ascii")
    assert free_bytes(torch.device("cpu")) == 4000


def test_peak_memory_is_linuxs_mark_since_the_block_began(monkeypatch, tmp_path):
    """The mark is forgotten as the block begins (5 in clear_refs does that) and read as it ends."""
    monkeypatch.setattr(peak, "CLEAR_REFS", tmp_path / "clear_refs")
    monkeypatch.setattr(peak, "STATUS", tmp_path / "status")
    peak.STATUS.write_text("Name:\tpython\nVmHWM:\t    900 kB\nVmRSS:\t    70 kB\n", encoding="ascii")
    with PeakMemory(torch.device("cpu")) as found:
        assert peak.CLEAR_REFS.read_text(encoding="ascii") == "5"
        peak.STATUS.write_text("Name:\tpython\nVmHWM:\t    80 kB\n", encoding="ascii")
    assert found.peak == 80 * 1024


def test_peak_memory_is_watched_where_there_is_no_mark(monkeypatch):
    """What was freed again is seen, and nobody watches any more after the block."""
    sizes, seen = iter([100, 900]), threading.Event()

    def memory_info():
        size = next(sizes, 70)
        if size == 70:
            seen.set()
        return SimpleNamespace(rss=size)

    monkeypatch.setattr(peak, "_forget_high_water", lambda: False)
    monkeypatch.setattr(peak.psutil, "Process", lambda: SimpleNamespace(memory_info=memory_info))
    threads = threading.active_count()
    with PeakMemory(torch.device("cpu")) as found:
        assert seen.wait(300)
    assert found.peak == 900
    assert threading.active_count() == threads


@pytest.mark.skipif(not peak.STATUS.exists(), reason="a mark of Linux")
def test_linux_keeps_the_mark_as_we_read_it():
    """In kB, of this process: about what it has now or more (its counters lag by some pages)."""
    assert peak._high_water() > 0.9 * peak.psutil.Process().memory_info().rss


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried")])
def test_out_of_memory_is_told_with_its_stage(error):
    with pytest.raises(EvditError, match="out of memory to decode") as caught, out_of_memory_told("decode", ["--x"]):
        raise error
    assert caught.value.exit_code == OUT_OF_MEMORY
    assert caught.value.next_steps == ("--x",)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), RecursionError("x"), ValueError("y")])
def test_other_errors_pass_through(error):
    with pytest.raises(type(error), match=str(error)), out_of_memory_told("decode", []):
        raise error
