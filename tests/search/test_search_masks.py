"""A whole search on planted attention: the table is that of a float64 softmax, runs go on and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.analysis.planted import LAYERS, PlantedBackbone, Site, StopsAfter, opened_as, planted
from tests.closeness import assert_close
from tests.search.made import times_of
from vdit_cli.attention.reference import reference_attention
from vdit_cli.errors import INTERRUPTED, USAGE, EvditError, Interrupted
from vdit_cli.recipe import SearchMasksOptions
from vdit_cli.search.plan_choice import Searched, choose
from vdit_cli.search.plan_costs import call_of
from vdit_cli.search.search_masks import search_masks
from vdit_cli.search.sensitivity import SensitivityTable
from vdit_cli.tiles.grid import VideoGrid
from vdit_cli.tiles.plan import EDITED, MaskPlan
from vdit_cli.timing import Silent

KINDS = ("diagonal", "global", "uniform", "unstable")


def run(
    patch: pytest.MonkeyPatch,
    out: Path,
    progress: Silent | None = None,
    backbone: PlantedBackbone | None = None,
    **asked,
) -> Searched:
    """A search of two prompts with two seeds each, seen at the first and the last of five steps."""
    (out.parent / "prompts.txt").write_text("3 over\n8 under\n", encoding="utf-8")
    options = {
        "model": "planted",
        "prompts_file": str(out.parent / "prompts.txt"),
        "seeds": "0,5",
        "at": "0,1",
        **asked,
    }
    with opened_as(backbone or PlantedBackbone(KINDS), patch):
        return search_masks(SearchMasksOptions(**options), out, progress or Silent())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Searched, dict[str, list[tuple[VideoGrid, list[int]]]]]:
    """A search, and by kind of layer what each call of a site attended with."""
    calls: dict[str, list[tuple[VideoGrid, list[int]]]] = {kind: [] for kind in LAYERS}
    attend = Site.run

    def recorded(self: Site, grid: VideoGrid, seeds: list[int]) -> None:
        calls[self.kind].append((grid, list(seeds)))
        attend(self, grid, seeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "run", recorded)
        return run(patch, tmp_path_factory.mktemp("whole") / "run"), calls


@pytest.mark.numerical
def test_the_table_is_that_of_a_float64_softmax(whole):
    """Every layer, mask, prompt, seed and step at its place, both branches in the mean; relative is over the power."""
    table, calls = whole[0].table, whole[1]
    assert table.prompts == (("3 over", 0), ("3 over", 5), ("8 under", 0), ("8 under", 5)) and table.steps == (0, 4)
    for layer, kind in enumerate(KINDS):
        assert len(calls[kind]) == 20
        for pair in range(4):
            for place, step in enumerate(table.steps):
                grid, seeds = calls[kind][5 * pair + step]
                q, k = (
                    torch.stack(each).double() for each in zip(*(planted(kind, grid, s) for s in seeds), strict=True)
                )
                dense, *masked = (reference_attention(q, k, k, mask, grid) for mask in table.masks)
                true = [0.0, *((each - dense).square().mean().item() for each in masked)]
                found = table.losses["attention"][layer, :, pair, place]
                assert_close(found, true, rtol=1e-4, atol=1e-9)
                power = dense.square().mean().item()
                assert_close(table.losses["relative"][layer, :, pair, place], found / power, rtol=1e-4, atol=1e-9)


def test_planted_layers_get_the_masks_that_fit_them(whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What looks at its own frame takes the sparsest mask, what looks at all frames a denser one."""
    table = whole[0].table
    loss = dict(zip(KINDS, table.mean("relative"), strict=True))
    sparsest = len(table.masks) - 1
    assert loss["diagonal"][sparsest] < 0.2 * loss["unstable"][sparsest]
    r = float(np.sqrt(loss["diagonal"][sparsest] * loss["unstable"][sparsest]))
    found = run(monkeypatch, tmp_path / "run", by="relative", r=r)
    masks = dict(zip(KINDS, found.plan.masks, strict=True))
    assert masks["diagonal"] == table.masks[-1] and masks["unstable"] != table.masks[-1]


def test_what_a_run_holds(whole):
    """The table and a plan that says what it was chosen from and what is expected of it."""
    found = whole[0]
    assert SensitivityTable.read(found.folder).digest == found.table.digest
    plan = MaskPlan.read(found.folder)
    assert plan == found.plan and plan.searched_on == found.table.weights == PlantedBackbone.weights_digest
    assert plan.made_by["sensitivity"] == found.table.digest and plan.made_by["r"] == 0.1
    kept = np.mean([mask.kept_share for mask in plan.masks])
    assert plan.predicted["kept_share"] == kept and plan.predicted["skipped_share"] == 1 - kept
    told = json.loads((found.folder / "run.json").read_text("utf-8"))
    assert {"sensitivity", "plan"} <= set(told["outputs"]) and told["state"] == "done"


def test_a_stopped_search_goes_on_at_the_next_pair(whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped in the third of four: two files stay as they are, and the end is that of a search nothing disturbed."""
    with pytest.raises(Interrupted, match="2 of 4 trajectories are finished") as stopped:
        run(monkeypatch, tmp_path / "run", StopsAfter(12))
    assert stopped.value.exit_code == INTERRUPTED
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/samples").iterdir()}
    assert len(files) == 2
    done = run(monkeypatch, tmp_path / "run")
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert done.table.digest == whole[0].table.digest and done.plan == whole[0].plan
    backbone = PlantedBackbone(KINDS)
    assert run(monkeypatch, tmp_path / "run", backbone=backbone).plan == done.plan and not backbone.batches


def test_a_damaged_file_is_made_again(whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One of two that a stop left is cut short: it is measured anew, the other is not."""
    with pytest.raises(Interrupted):
        run(monkeypatch, tmp_path / "run", StopsAfter(12))
    first, second = sorted((tmp_path / "run/samples").iterdir())
    first.write_bytes(first.read_bytes()[:100])
    before = second.stat().st_mtime_ns
    assert run(monkeypatch, tmp_path / "run").table.digest == whole[0].table.digest
    assert second.stat().st_mtime_ns == before


@pytest.mark.numerical
def test_a_site_without_any_output_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its relative error is 0 over 0, which is told as 0, beside those of other sites that stay as they were."""
    with pytest.raises(Interrupted):
        run(monkeypatch, tmp_path / "run", StopsAfter(6))
    (file,) = (tmp_path / "run/samples").iterdir()
    numbers = json.loads(file.read_text("utf-8"))
    numbers["attention"][0][1], numbers["power"][0][1] = [0.0] * 4, 0.0
    file.write_text(json.dumps(numbers), encoding="utf-8")
    table = run(monkeypatch, tmp_path / "run").table
    assert not table.losses["relative"][1, :, 0, 0].any()
    assert_close(table.losses["relative"][0, :, 0, 0], np.array(numbers["attention"][0][0]) / numbers["power"][0][0])


def test_what_it_will_cost_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Kept shares of 52, 34 and 22 of 64 tiles on top of full attention; of the output a pass a layer and mask."""
    progress = Silent()
    run(monkeypatch, tmp_path / "run", progress, at="0", by="output", seeds="0")
    cost = "2.69 times the attention of a step and 12 more passes through the model there"
    looked_at = "2 prompts with 1 seed to step 1 of 5, 1 step of each looked at"
    assert f"{looked_at}: 4 layers, 4 masks, {cost}" in progress.lines


def test_an_edited_plan_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Sealed by a person, in a run that is done: refused before anything is sampled; without a seal it is made anew."""
    plan = run(monkeypatch, tmp_path / "run").plan
    edited = replace(plan, masks=plan.masks[::-1], made_by={"command": EDITED, "made_by": dict(plan.made_by)})
    edited.write(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    backbone = PlantedBackbone(KINDS)
    with pytest.raises(EvditError, match="the plan was edited and sealed") as caught:
        run(monkeypatch, tmp_path / "run", backbone=backbone)
    assert caught.value.exit_code == USAGE and not backbone.batches
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "run/plan.json").write_text("{}", encoding="utf-8")
    assert run(monkeypatch, tmp_path / "run").plan == plan == MaskPlan.read(tmp_path / "run")


def test_the_output_is_measured_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pass for each layer and mask at each step looked at, on both branches; these layers change no output."""
    backbone = PlantedBackbone(KINDS[:2])
    found = run(monkeypatch, tmp_path / "run", backbone=backbone, by="output", seeds="0", masks="2:6")
    assert found.table.losses["output"].shape == (2, 2, 2, 2) and not found.table.losses["output"].any()
    assert backbone.batches == [2] * (2 * (5 + 2 * 2))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"masks": "8:0"}, "there is nothing to choose"),
        ({"masks": "9:9"}, "9:9"),
        ({"at": "2"}, "no share of the trajectory"),
        ({"kernel": "fast"}, "fast"),
        ({"uniform": "3:5", "masks": "2:6"}, "no candidate"),
        ({"fix": "9=2:6"}, "no layer 9"),
        ({"target_speedup": 2.0, "max_loss": 1.0}, "2 rules"),
        ({"r": float("nan")}, "nan is no number"),
        ({"latency": 1.0}, "without a cost table"),
        ({"costs": "nowhere.json"}, "nowhere.json can't be read"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    asked: dict, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Exit 2 before the model samples, and no folder."""
    backbone = PlantedBackbone(KINDS)
    with pytest.raises(EvditError, match=told) as refused:
        run(monkeypatch, tmp_path / "run", backbone=backbone, **asked)
    assert refused.value.exit_code == USAGE and not (tmp_path / "run").exists() and not backbone.batches


class Loses(Silent):
    """A file is gone once the first step is done."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def advance(self, note: str = "") -> None:
        """Delete it."""
        self.file.unlink(missing_ok=True)


def test_a_plan_by_the_times_that_the_search_began_with(whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the call that the trajectory makes, read before anything is sampled; the same as a choice from the table."""
    times = times_of(call_of(whole[0].table), {"8:0": 2.0, "4:4": 2.5, "2:6": 1.5, "1:7": 0.5})
    file = times.write(tmp_path / "costs.json")
    found = run(monkeypatch, tmp_path / "run", Loses(file), costs=str(file), latency=5.5)
    assert not file.exists() and found.choice.met and found.choice.cost <= 5.5
    assert (
        found.plan.made_by["costs"] == times.digest and found.plan.predicted["attention_seconds"] == found.choice.cost
    )
    times.write(file)
    again = choose(found.table, SearchMasksOptions(costs=str(file), latency=5.5), tmp_path)
    assert again.plan == found.plan and again.choice == found.choice
    assert run(monkeypatch, tmp_path / "run", costs=str(file), latency=5.5).plan == found.plan
    other = times_of(call_of(whole[0].table), {"8:0": 2.0, "4:4": 2.5, "2:6": 1.5, "1:7": 0.6}).write(file)
    with pytest.raises(EvditError, match="costs: was"):
        run(monkeypatch, tmp_path / "run", costs=str(other), latency=5.5)
    wrong = times_of(replace(call_of(whole[0].table), batch=1), {"8:0": 2.0}).write(file)
    backbone = PlantedBackbone(KINDS)
    with pytest.raises(EvditError, match="do not tell what batch 2 of 8 frames"):
        run(monkeypatch, tmp_path / "other", backbone=backbone, costs=str(wrong))
    assert not (tmp_path / "other").exists() and not backbone.batches


def test_too_large_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Told before anything loads, with what would fit."""
    monkeypatch.setattr("vdit_cli.sampling.trajectory.free_bytes", lambda device: 1000)
    with pytest.raises(EvditError, match="needs about .* are free") as refused:
        run(monkeypatch, tmp_path / "run")
    assert refused.value.exit_code == 4


def test_another_rule_does_not_go_on_in_the_same_run(whole, monkeypatch: pytest.MonkeyPatch):
    """The plan that is there stays; --sensitivity is how to choose again."""
    before = (whole[0].folder / "plan.json").read_bytes()
    with pytest.raises(EvditError, match="r: was 0.1"):
        run(monkeypatch, whole[0].folder, r=0.2)
    assert (whole[0].folder / "plan.json").read_bytes() == before


def test_a_kernel_that_can_not_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The next one computes, a line says so, and the table tells which ran."""
    progress = Silent()
    found = run(monkeypatch, tmp_path / "run", progress, kernel="fa4", masks="2:6")
    assert len([line for line in progress.lines if line.startswith("warning:") and "fa4" in line]) == 1
    assert found.table.settings["kernels"] == {"2:6": "sdpa"}
