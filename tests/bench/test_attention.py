"""The whole of `evdit bench attention`: rows kept, a run that goes on, a gate that holds, and a mask that pays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.attention.one_choice import one_choice_only
from tests.closeness import assert_close
from tests.tensors import LargestTensor
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.attention import costs
from vdit_cli.attention.bind import Case
from vdit_cli.attention.costs import GATHER, CostTable, Machine
from vdit_cli.attention.kernels import sdpa
from vdit_cli.bench import attention as bench_module
from vdit_cli.bench.attention import JudgementFailed, bench_attention
from vdit_cli.bench.contenders import Contender
from vdit_cli.bench.measuring import Bench, blank_row
from vdit_cli.bench.rows import Row
from vdit_cli.errors import GATE_FAILED, INTERRUPTED, OUT_OF_MEMORY, USAGE, EvditError, Interrupted
from vdit_cli.recipe import BenchAttentionOptions, load
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Silent

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "latent_frames": 6,
    "frame_tokens": 5,
    "heads": 2,
    "head_dim": 16,
    "masks": "3:3,2:4,1:5",
    "kernels": "sdpa",
    "device": "cpu",
    "seconds": 0.0,
}

KILLED = """
import os, signal
from vdit_cli.attention.kernels import sdpa
from vdit_cli.tiles.passes import passes
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.mask import TileMask
fatal, run = passes(TileMask.parse("1:5", 6), VideoGrid(6, 1, 5)), sdpa.run
def run_or_die(q, k, v, asked):
    if asked == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return run(q, k, v, asked)
sdpa.run = run_or_die
from tests.bench.test_attention import options
from vdit_cli.bench.attention import bench_attention
from vdit_cli.timing import Silent
from pathlib import Path
bench_attention(options(), Path("run"), Silent())
"""


def options(**changed: object) -> BenchAttentionOptions:
    """The tiny shape with some flags changed."""
    return load(flags={f"bench.attention.{key}": value for key, value in {**TINY, **changed}.items()}).bench.attention


def test_a_run_that_is_killed_goes_on_with_the_missing_rows(tmp_path: Path):
    """SIGKILL in the last mask: the rows before it are whole, and are the very ones in the results later."""
    if os.name != "posix":
        return
    died = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    run = tmp_path / "run"
    rows = {file.name: file.read_bytes() for file in run.rglob("rows/*/*.json")}
    assert set(rows) == {"6-0-sdpa-dense.json", "3-3-sdpa.json", "2-4-sdpa.json"}
    assert RunDir.open(run).state() == INTERRUPTED_STATE and not (run / "results.json").exists()
    results = bench_attention(options(), run, Silent())
    (table,) = results["tables"].values()
    assert [row["mask"] for row in table["rows"]] == ["6:0", "3:3", "2:4", "1:5"]
    assert all(row["ms"] > 0 for row in table["rows"])
    assert {name: (run / "rows" / "6x5-2x16" / name).read_bytes() for name in rows} == rows
    kept = [json.loads(text)["ms"] for text in rows.values()]
    assert set(kept) <= {row["ms"] for row in table["rows"]}


INTERRUPTED_STATE = "interrupted"


@pytest.mark.parametrize(("asked", "given"), [(None, 0.2), (0.0, 0.0), (0.5, 0.5)])
def test_a_mask_is_timed_briefly_on_a_cpu(
    asked: float | None, given: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A fifth of a second and five repeats where nothing else is asked for; a GPU gets a second."""
    timed: list[tuple[float, int]] = []

    def no_time(bench: Bench, contenders: list[Contender], rival: Contender | None) -> list[Row]:
        timed.append((bench.seconds, bench.least_repeats))
        return [replace(blank_row(bench.shape, each.mask, each.name, each.is_dense), ms=1.0) for each in contenders]

    monkeypatch.setattr(bench_module, "measure_group", no_time)
    bench_attention(options(seconds=asked), tmp_path / "run", Silent())
    assert timed == [(given, 5)] * 4
    assert bench_module.seconds_of(options(seconds=asked), torch.device("cuda")) == (1.0 if asked is None else asked)


def test_a_run_that_is_done_is_read_and_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same results, quickly, with a line that says so; other options are refused; files and their digests."""
    first = bench_attention(options(), tmp_path / "run", Silent())
    assert {file.name for file in (tmp_path / "run").iterdir()} >= {"results.json", "results.md", "results.png", "rows"}
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8")) == first
    assert RunDir.open(tmp_path / "run").find("picture").name == "results.png"

    def never(*operands: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(bench_module, "measure_group", never)
    silent = Silent()
    assert bench_attention(options(), tmp_path / "run", silent) == first
    assert any("done already" in line for line in silent.lines)
    with pytest.raises(EvditError, match="made by another recipe.*heads: was 2, is 3") as caught:
        bench_attention(options(heads=3), tmp_path / "run", Silent())
    assert caught.value.exit_code == USAGE


def test_ctrl_c_stops_between_masks_and_keeps_the_rows(tmp_path: Path):
    """Asked after the second group: its rows are there, and the same command ends the table."""

    class Impatient(Silent):
        groups = 0

        def advance(self, note: str = "") -> None:
            """Count the groups."""
            self.groups += 1

        def should_stop(self) -> bool:
            """After two of them."""
            return self.groups == 2

    with pytest.raises(Interrupted) as caught:
        bench_attention(options(), tmp_path / "run", Impatient())
    assert caught.value.exit_code == INTERRUPTED and RunDir.open(tmp_path / "run").state() == INTERRUPTED_STATE
    assert len(list((tmp_path / "run").rglob("rows/*/*.json"))) == 2
    assert {row.mask.name for row in CostTable.load(tmp_path / "run").rows} == {"6:0", "3:3"}
    assert len(next(iter(bench_attention(options(), tmp_path / "run", Silent())["tables"].values()))["rows"]) == 4
    assert {row.mask.name for row in CostTable.load(tmp_path / "run").rows} == {"6:0", "3:3", "2:4", "1:5"}


def test_a_kernel_that_is_wrong_fails_the_command_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Exit 5 after everything else was measured and written; mended, the same command measures only that row."""
    right = sdpa.run
    with monkeypatch.context() as patched:
        patched.setattr(sdpa, "run", lambda q, k, v, passes: right(q, k, v, passes) * (1.2 if len(passes) > 1 else 1))
        with pytest.raises(JudgementFailed) as caught:
            bench_attention(options(), tmp_path / "run", Silent())
    assert caught.value.exit_code == GATE_FAILED and "3 of the rows" in caught.value.what
    (table,) = caught.value.results["tables"].values()
    assert [row["ms"] is None for row in table["rows"]] == [False, True, True, True]
    assert json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8")) == caught.value.results
    assert RunDir.open(tmp_path / "run").state() == "failed"
    mended = bench_attention(options(), tmp_path / "run", Silent())
    assert all(row["ms"] > 0 for row in next(iter(mended["tables"].values()))["rows"])


def test_where_no_dense_kernel_passes_nothing_is_called_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A time may stand alone; a speed-up over what was refused may not."""
    from vdit_cli.bench import contenders

    broken = contenders.DenseWay("broken", "cpu", lambda: lambda q, k, v: (q + k + v) / 3)
    monkeypatch.setattr(contenders, "DENSE_WAYS", (broken,))
    with pytest.raises(JudgementFailed) as caught:
        bench_attention(options(), tmp_path / "run", Silent())
    (table,) = caught.value.results["tables"].values()
    assert [row["speedup"] for row in table["rows"]] == [None] * 4
    assert table["rows"][1]["ms"] > 0 and table["break_even"] == "break-even: nothing was timed"


def test_no_kernels_print_the_shares_only(tmp_path: Path):
    """Table 1 without measuring: at 86,400 tokens no tensor is made."""
    asked = load(flags={"bench.attention.table": 1, "bench.attention.kernels": "none"}).bench.attention
    with LargestTensor() as made:
        results = bench_attention(asked, tmp_path / "run", Silent())
    assert made.bytes == 0
    assert results["tables"]["table-1"]["sparsity_agrees"] is True
    assert list(results["tables"]) == ["open-sora-plan-29", "open-sora-plan-93", "table-1"]
    assert not (tmp_path / "run" / "results.png").exists()
    assert results["command"] == "evdit bench attention --table 1 --kernels none"


def test_what_does_not_fit_the_memory_is_refused_before_anything_is_made(tmp_path: Path):
    """Exit 4 with smaller sizes to try, and no folder left behind."""
    with pytest.raises(EvditError, match="all operands must fit") as caught:
        bench_attention(options(frame_tokens=10**6, heads=1000), tmp_path / "run", Silent())
    assert (caught.value.exit_code, caught.value.where) == (OUT_OF_MEMORY, "--frame-tokens 1000000")
    assert not (tmp_path / "run").exists()


def test_backward_rows_are_their_own_table(tmp_path: Path):
    """Named so, timed with gradients, in half precision too."""
    results = bench_attention(options(backward=True, dtype="bfloat16", masks="1:5"), tmp_path / "run", Silent())
    (key,) = results["tables"]
    assert key.endswith("-backward") and results["dtype"] == "bfloat16"
    assert all(row["ms"] > 0 and not row["failed"] for row in results["tables"][key]["rows"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backward", [False, True])
def test_every_kernel_of_a_gpu_passes_or_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backward: bool):
    """All dense ways and all kernels in bfloat16; the GPU's clocks are in the results."""
    one_choice_only(monkeypatch)
    sizes = {"frame_tokens": 150, "head_dim": 64, "kernels": "all", "device": "cuda", "dtype": "bfloat16"}
    results = bench_attention(options(**sizes, backward=backward), tmp_path / "run", Silent())
    (table,) = results["tables"].values()
    assert all(row["ms"] or row["note"] for row in table["rows"])
    assert any(row["ms"] for row in table["rows"] if row["is_dense"]) and "clocks_sm" in results["machine"]["gpu"]


@pytest.mark.numerical
def test_measured_times_are_what_auto_chooses_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every timed row stands in the user's cost table and in the run's, in seconds; what was measured before stays."""
    monkeypatch.setattr(costs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    machine = Machine.of(torch.device("cpu"))
    case = Case(VideoGrid(6, 1, 5), 2, 16, 1, torch.float32, torch.device("cpu"))
    before = CostTable(machine).with_times(TileMask.parse("1:5", 6), case, {"flex": 9.0, "sdpa": 8.0})
    before.write()
    results = bench_attention(options(), tmp_path / "run", Silent())
    kept = CostTable.read(machine, pytest.fail)
    own = CostTable.load(RunDir.open(tmp_path / "run").find("costs"))
    assert own.machine == machine and own.rows.items() < kept.rows.items(), "those of this run alone"
    (table,) = results["tables"].values()
    assert len(table["rows"]) == 4
    for row in table["rows"]:
        mask = TileMask.parse(row["mask"], 6)
        assert_close(kept.seconds(mask, case, row["kernel"]), row["ms"] / 1000)
    assert kept.seconds(TileMask.parse("1:5", 6), case, "flex") == 9.0
    assert [row.mask.name for row in kept.rows if row.kernel == GATHER] == ["6:0"]
    sparse, dense = (kept.seconds(TileMask.parse(name, 6), case) for name in ("3:3", "6:0"))
    expected = sparse / dense if sparse > dense else None
    assert kept.over_dense(TileMask.parse("3:3", 6), case, "sdpa") == expected


def test_a_row_counts_as_measured_once_its_times_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped between the two it is measured again, so that the run's cost table lacks nothing that its rows have."""
    kept = bench_module.remember

    def stopped(found: CostTable, say: object, path: Path | None = None) -> None:
        if {row.kernel for row in found.rows} != {GATHER}:
            raise KeyboardInterrupt
        kept(found, say, path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(bench_module, "remember", stopped)
        bench_attention(options(), tmp_path / "run", Silent())
    assert not list((tmp_path / "run").rglob("rows/*/*.json"))
    bench_attention(options(), tmp_path / "run", Silent())
    rows = CostTable.load(tmp_path / "run").rows
    assert [row.mask.name for row in rows if row.kernel != GATHER] == ["6:0", "3:3", "2:4", "1:5"]


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A line says so, and the results are there."""
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    monkeypatch.setattr(costs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    said: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "say", said.append)
    assert bench_attention(options(masks="1:5"), tmp_path / "run", progress)["tables"]
    assert any("not kept for later runs" in line for line in said)
