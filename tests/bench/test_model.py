"""The whole step measured at a tiny size: numbers that follow from one another, rows that are kept, sizes refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.closeness import assert_close
from vdit_cli.artifacts.atomic import write_json
from vdit_cli.attention import costs, kernel_times
from vdit_cli.attention.bind import Case, bind
from vdit_cli.attention.costs import CostTable, Machine
from vdit_cli.bench import model as measuring
from vdit_cli.bench import steps
from vdit_cli.bench.model import bench_model, ways_of
from vdit_cli.bench.model_rows import COMPILED, EAGER, PLAIN, StepFolder, StepRow, compared
from vdit_cli.bench.model_sizes import HISTOGRAM_MASKS, HISTOGRAMS, SIZES, lengths_of, masks_of, plans_of, size_of
from vdit_cli.bench.model_tables import as_markdown, as_text
from vdit_cli.bench.paper_videos import PAPER_SPEEDUPS
from vdit_cli.bench.plain import PlainStep
from vdit_cli.bench.steps import BareBackbone, Variant, prepare, step_flops
from vdit_cli.bench.timed_attention import AttentionClock
from vdit_cli.bench.videos import video_rows
from vdit_cli.errors import ENVIRONMENT, USAGE, EvditError, Interrupted
from vdit_cli.recipe import BenchModelOptions
from vdit_cli.tiles.mask import TileMask
from vdit_cli.timing import Silent

CPU = torch.device("cpu")
TINY = {
    "layers": 2,
    "heads": 2,
    "head_dim": 12,
    "frame_tokens": 6,
    "text_width": 16,
    "device": "cpu",
    "seconds": 0.0,
    "least_repeats": 1,
}


def tiny(**changes) -> BenchModelOptions:
    return BenchModelOptions(**TINY | changes)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Everything that the command can measure, once, and its folder."""
    folder = tmp_path_factory.mktemp("bench") / "run"
    options = tiny(plans="2:6,r=.1", videos=True, lengths="4,6", global_frames=2)
    return options, folder, bench_model(options, folder, Silent())


def test_a_run_has_every_table_and_its_files(measured):
    _, folder, results = measured
    assert list(results["tables"]) == ["steps", "lengths", "videos", "whole", "parts"]
    steps = results["tables"]["steps"]["rows"]
    assert Counter(row["way"] for row in steps) == {PLAIN: 2, EAGER: 6}
    assert {row["frames"] for row in results["tables"]["lengths"]["rows"]} == {4, 6}
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == results
    for name in ("lengths.png", "results.md"):
        assert (folder / name).stat().st_size > 0
    for text in (as_text(results), as_markdown(results)):
        assert "over plain" in text and "parameters in use" in text and "2:6" in text


@pytest.mark.numerical
def test_the_numbers_of_a_row_follow_from_one_another(measured):
    results = measured[2]
    for row in results["tables"]["steps"]["rows"]:
        assert row["ms"] > 0 and row["attention_ms"] > 0 and row["peak_bytes"] > 0
        assert_close(row["attention_ms"] + row["rest_ms"], row["ms"])
        assert_close(row["attention_share"], row["attention_ms"] / row["ms"])
        assert_close(row["of_peak"], row["tflops"] / results["peak_tflops"])
        assert_close(row["kept_share"] + row["skipped_share"], 1)


def test_parameters_are_those_of_the_model(measured):
    backbone = BareBackbone(size_of(measured[0]), CPU, torch.float32, 0)
    assert measured[2]["parameters"] == sum(weights.numel() for weights in backbone.model.state_dict().values())


def test_a_finished_run_is_read_and_a_stopped_one_goes_on(measured, tmp_path, monkeypatch):
    options, folder, results = measured
    monkeypatch.setattr(measuring, "measure_step", lambda *_: pytest.fail("measured again"))
    progress = Silent()
    assert bench_model(options, folder, progress) == results
    assert "is done already" in progress.lines[0]
    monkeypatch.undo()

    class StopAfterTwo(Silent):
        left = 2

        def advance(self, note=""):
            self.left -= 1

        def should_stop(self):
            return self.left <= 0

    options = tiny(plans="2:6", guidance="distilled")
    with pytest.raises(Interrupted, match="rows that were measured are kept"):
        bench_model(options, tmp_path / "run", StopAfterTwo())
    calls = []
    real = measuring.measure_step
    monkeypatch.setattr(measuring, "measure_step", lambda *given: calls.append(given[1].plan) or real(*given))
    whole = bench_model(options, tmp_path / "run", Silent())
    assert calls == ["2:6"]
    assert len(whole["tables"]["steps"]["rows"]) == 3


def made(plan: str, way: str, ms: float, attention_ms: float, guided: bool = False) -> StepRow:
    return StepRow(
        frames=8,
        plan=plan,
        way=way,
        guided=guided,
        kept_share=1.0,
        skipped_share=0.0,
        kernels=["sdpa"],
        ms=ms,
        attention_ms=attention_ms,
    )


@pytest.mark.numerical
def test_predicted_speed_up_is_amdahls():
    """Dense 100 ms of which 60 are attention; a plan halves attention: 70 ms, 1 / (.4 + .6 / 2)."""
    rows = [made("dense", PLAIN, 150, 70), made("dense", EAGER, 100, 60), made("2:6", EAGER, 70, 30)]
    plain, dense, sparse = compared(rows)
    assert_close(sparse["predicted"], 1 / 0.7)
    assert_close(sparse["tau"], 0.5)
    assert_close(sparse["gap"], 0, planted=0.4, told="attention not told from the rest")
    assert_close(sparse["over_dense"], 100 / 70)
    assert_close(sparse["over_plain"], 150 / 70)
    assert "predicted" not in dense and dense["over_plain"] == 1.5
    assert "over_dense" not in plain


@pytest.mark.numerical
def test_seconds_of_videos_and_the_papers_column():
    size = SIZES["open-sora-plan-29"]
    plans = plans_of(BenchModelOptions(preset=size.name, plans="r=.1"), size)
    rows = [
        made("dense", PLAIN, 1000, 500, guided=True),
        made("dense", EAGER, 800, 500, guided=True),
        made("dense", COMPILED, 500, 300, guided=True),
        made("r=.1", COMPILED, 400, 200, guided=True),
        made("r=.1", COMPILED, 200, 100),
    ]
    found = {(row["plan"], row["steps"], row["guidance"]): row for row in video_rows(size, plans, rows)}
    assert found["plain", 100, "kept"]["seconds"] == 100
    assert found["dense", 20, "kept"]["seconds"] == 10  # the faster way
    assert found["dense", 20, "kept"]["speedup"] == 10
    assert found["dense", 20, "kept"]["paper_speedup"] == 5.0
    assert found["r=.1", 20, "kept"]["paper_speedup"] == 7.05
    assert_close(found["r=.1", 20, "distilled"]["speedup"], 25)
    assert "paper_speedup" not in found["r=.1", 8, "distilled"]
    assert ("dense", 20, "distilled") not in found
    assert PAPER_SPEEDUPS["1:7", 100] == 1.77


@pytest.mark.numerical
def test_the_whole_video_is_the_sampling_loops(measured):
    (whole,) = measured[2]["tables"]["whole"]["rows"]
    assert (whole["plan"], whole["steps"], whole["guidance"]) == ("r=.1", 20, "distilled")
    assert_close(whole["gap"], whole["seconds"] / whole["expected"] - 1)
    assert whole["agrees"] == (-0.03 <= whole["gap"] <= 0.03)


@pytest.mark.numerical
@pytest.mark.parametrize("way", [PLAIN, EAGER])
@pytest.mark.parametrize("guided", [False, True])
def test_the_linear_layers_flops_are_those_that_torch_counts(way, guided):
    """torch counts products with weights (attention on the CPU is one operator to it): cross-attention is added."""
    size = size_of(tiny())
    backbone = BareBackbone(size, CPU, torch.float32, 0)
    dense = (TileMask.dense(8),) * size.layers
    work, _, _ = prepare(backbone, Variant(8, "dense", dense, way, guided), "auto")
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        work()
    operations = counted.get_flop_counts()["Global"]
    products = sum(count for name, count in operations.items() if "attention" not in str(name))
    batch, tokens, text = (2 if guided else 1), size.grid.tokens, 32 if way == PLAIN else 12
    cross = size.layers * 4 * batch * tokens * text * size.channels
    attention, rest = step_flops(size, Variant(8, "dense", dense, way, guided))
    assert attention == size.layers * 4 * batch * size.channels * tokens**2
    assert_close(rest - cross, products, rtol=0.09)


def test_the_clock_around_attention_adds_up_and_changes_nothing():
    clock = AttentionClock(CPU)
    q = torch.randn(1, 4, 2, 6)
    timed = clock.timed(lambda q, k, v: q + k + v)
    assert torch.equal(timed(q, q, q), q + q + q)
    first = clock.read()
    assert first > 0 and clock.read() == 0


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_histograms_give_each_mask_its_layers(name):
    masks = masks_of(name, SIZES["open-sora-plan-29"])
    counts = Counter(mask.name for mask in masks)
    assert tuple(counts.get(mask, 0) for mask in HISTOGRAM_MASKS) == HISTOGRAMS[name]
    assert sum(HISTOGRAMS[name]) == 32
    eight = masks_of(name, SIZES["shapes"])
    assert len(eight) == 8 and {mask.name for mask in eight} <= set(HISTOGRAM_MASKS)


@pytest.mark.numerical
def test_histograms_reproduce_the_papers_sparsity():
    """Table 2 prints the mean sparsity in 128-blocks: 23.51, 37.78, 45.08, 51.55, 55.07 %."""
    size = SIZES["open-sora-plan-29"]
    printed = dict(zip(HISTOGRAMS, (23.51, 37.78, 45.08, 51.55, 55.07), strict=True))
    for name, sparsity in printed.items():
        skipped = [1 - mask.kept_block_share(size.grid) for mask in masks_of(name, size)]
        assert_close(100 * sum(skipped) / len(skipped), sparsity, atol=0.03)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"preset": "sora"}, "preset"),
        ({"head_dim": 16}, "multiple of 6"),
        ({"plans": "2:7"}, "8 latent frames"),
        ({"plans": "r=.3"}, "histogram"),
        ({"plans": "r=.1", "latent_frames": 6}, "over 8 latent frames"),
        ({"lengths": "8,x"}, "no list of latent frames"),
        ({"lengths": "8", "global_frames": 5}, "5:3"),
        ({"kernel": "magic"}, "kernel"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(changes, says, tmp_path):
    with pytest.raises(EvditError, match=says) as caught:
        bench_model(tiny(**changes), tmp_path / "run", Silent())
    assert caught.value.exit_code == USAGE
    assert not (tmp_path / "run").exists()


def test_ways_follow_what_was_asked_and_what_the_machine_can(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(measuring, "why_not", lambda on_gpu: None)
    assert ways_of(tiny(), CPU) == ((EAGER,), [])
    assert ways_of(tiny(), cuda) == ((EAGER, COMPILED), [])
    assert ways_of(tiny(compile="blocks"), CPU) == ((COMPILED,), [])
    monkeypatch.setattr(measuring, "why_not", lambda on_gpu: "triton is not installed")
    assert ways_of(tiny(), cuda) == ((EAGER,), ["Compiled blocks were not measured: triton is not installed."])
    with pytest.raises(EvditError, match="triton") as caught:
        ways_of(tiny(compile="both"), cuda)
    assert caught.value.exit_code == ENVIRONMENT


def test_rows_without_a_number_are_tried_again_and_so_are_broken_ones(tmp_path):
    folder = StepFolder(tmp_path)
    row = made("r=.1", EAGER, 5.0, 2.0)
    folder.keep(row)
    assert folder.read(8, "r=.1", EAGER, False) == row
    assert folder.read(8, "r=.1", EAGER, True) is None
    out_of_memory = StepRow(
        frames=8, plan="1:7", way=EAGER, guided=False, kept_share=1.0, skipped_share=0.0, kernels=[], note="full"
    )
    folder.keep(out_of_memory)
    assert folder.read(8, "1:7", EAGER, False) is None
    write_json(folder.file(8, "r=.1", EAGER, False), {"schema": "evdit.bench-step/1", "frames": 8})
    assert folder.read(8, "r=.1", EAGER, False) is None
    folder.file(8, "r=.1", EAGER, False).write_bytes(b"")
    assert folder.read(8, "r=.1", EAGER, False) is None


def test_lengths_are_sorted_and_distinct():
    assert lengths_of(tiny(lengths="12,6,12", global_frames=3)) == (6, 12)
    assert lengths_of(tiny()) == ()


@pytest.mark.numerical
@torch.no_grad()
def test_steps_of_a_plan_hold_frames_in_its_order_and_the_plain_one_does_not():
    backbone = BareBackbone(size_of(tiny(layers=3)), CPU, torch.float32, 0)
    masks = (TileMask.parse("2:6", 8),) * 3
    x, t, text = backbone.noise(8, guided=True), torch.tensor([500]).expand(2), backbone.network_text(guided=True)
    prepared = backbone.prepare_text(text)
    own = [bind(mask, Case(backbone.size.grid, 2, 12, 2, torch.float32, CPU)) for mask in masks]
    for block, attend in zip(backbone.model.blocks, own, strict=True):
        block.attn1.attend = attend
    expected = backbone.denoise(x, t, prepared)
    attends = backbone.put_plan(masks, 8, True, "auto")
    assert backbone.model.frame_order == attends[0].frame_order != tuple(range(8))
    assert_close(backbone.denoise(x, t, prepared), expected)
    backbone.take_plan_off()
    plain = PlainStep(backbone.model)(x, t, text.states_BLC, text.mask_BL)
    assert_close(plain, backbone.denoise(x, t, prepared))


def test_a_step_on_a_gpu_keeps_the_kernels_times(monkeypatch, tmp_path):
    """What put_plan measures for "auto" is in the cost table that generate reads, once a mask; a name asks for none."""
    here, asked = Machine("a GPU", "2.13", "3.9", "1.0"), []

    def measured_once(mask, case, kernels, within):
        asked.append(mask)
        return {"sdpa": 2e-3, "triton": 1e-3}

    monkeypatch.setattr(costs, "user_cache_path", lambda *_, **__: tmp_path)
    monkeypatch.setattr(steps.Machine, "of", lambda device: here)
    monkeypatch.setattr(kernel_times, "measure", measured_once)
    monkeypatch.setattr(kernel_times, "is_gpu", lambda device: True)
    monkeypatch.setattr(kernel_times, "timed_kernels", lambda case: ("sdpa", "triton"))
    size = size_of(tiny())
    backbone = BareBackbone(size, CPU, torch.float32, 0)
    case = Case(size.grid, size.heads, size.head_dim, 1, torch.float32, CPU)
    masks = tuple(TileMask.parse(name, 8) for name in ("2:6", "1:7"))
    backbone.put_plan(masks, 8, False, "sdpa")
    assert asked == []
    for _ in range(2):
        backbone.put_plan(masks, 8, False, "auto")
    assert sorted(asked, key=masks.index) == list(masks)
    for mask in masks:
        assert CostTable.read(here, pytest.fail).timed(mask, case) == {"sdpa": 2e-3, "triton": 1e-3}


@pytest.mark.parametrize("lengths", ["4,65537", "100000000000", "4,x", "1" * 5000])
def test_lengths_that_no_video_has_are_refused(lengths: str):
    """At once: masks of so many frames are never listed."""
    with pytest.raises(EvditError, match="65536 is the most|is no list of latent frames") as caught:
        lengths_of(tiny(lengths=lengths, global_frames=2))
    assert caught.value.exit_code == USAGE
