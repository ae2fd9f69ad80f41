"""A knowledge distillation on the CPU: it learns, resumes bit-equal, goes before or after steps, refuses misfits."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.backbones.open_sora_plan.opened import made as sampled
from tests.backbones.open_sora_plan.opened import opened
from tests.closeness import assert_close
from tests.distillation.prepared import write_data
from tests.distillation.small_kd import distill_small_kd
from tests.distillation.small_mlcd import KillsAt, StopsAt, distill_small
from tests.forked import run_forked
from tests.tiny_pipeline import copied, write_pipeline
from vdit_cli.artifacts.receipt import Receipt
from vdit_cli.artifacts.run_dir import RunDir
from vdit_cli.artifacts.sampler import Sampler
from vdit_cli.backbones.base import TextStates, own_plan
from vdit_cli.backbones.lineage import Lineage
from vdit_cli.data.shards import open_data
from vdit_cli.distillation import kd_networks, watch
from vdit_cli.errors import FAILED, USAGE, EvditError, Interrupted
from vdit_cli.sampling.noise import generators_for
from vdit_cli.sampling.plans import find_plan
from vdit_cli.sampling.sample import SampleSpec, sample
from vdit_cli.tiles.mask import TileMask
from vdit_cli.tiles.plan import MaskPlan
from vdit_cli.timing import Silent

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and data of 16 clips, of which 2 are held out."""
    folder = tmp_path_factory.mktemp("prepared")
    model = write_pipeline(folder / "model")
    return model, write_data(folder / "data", model, 16)


@pytest.fixture(scope="module")
def four(prepared: tuple[Path, Path]) -> Path:
    """The run of a student of 4 steps without guidance, of pairs of rank 2."""
    run = prepared[0].parent / "four"
    distill_small(*prepared, run, lora_rank=2, learning_rate=1e-2)
    return run


@pytest.fixture(scope="module")
def sparse(prepared: tuple[Path, Path], four: Path) -> Path:
    """The run of that student under masks."""
    run = prepared[0].parent / "sparse"
    distill_small_kd(*prepared, run, checkpoint=str(four))
    return run


def lines_of(run: Path) -> list[dict]:
    """Its metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.numerical
def test_a_student_learns(prepared: tuple[Path, Path], tmp_path: Path):
    """The loss on clips that it never sees falls, and its layers say so."""
    progress = Silent()
    changes = {"iterations": 200, "batch_size": 8, "checkpoint_every": 200, "learning_rate": 1e-3, "log_every": 20}
    distill_small_kd(*prepared, tmp_path / "run", progress, **changes)
    lines = lines_of(tmp_path / "run")
    assert lines[-1]["held_out_loss"] < 0.8 * lines[0]["held_out_loss"]
    report = json.loads((tmp_path / "run" / "layers.json").read_text(encoding="utf-8"))
    assert report["schema"] == "evdit.kd-layers/1" and [each["layer"] for each in report["layers"]] == [0, 1]
    assert sum(each["after"] for each in report["layers"]) < sum(each["before"] for each in report["layers"])
    mean = sum(each["after"] for each in report["layers"]) / 2
    assert_close(mean, lines[-1]["held_out_attention_loss"], rtol=0.2, planted=1.0)
    assert any(line.startswith("    0  1:2 ") for line in progress.lines)


def test_a_finished_run_tells_what_it_made(prepared: tuple[Path, Path], four: Path, sparse: Path, evdit):
    """Sampler and plan with the weights, receipt, lineage and card; done already; generate wears the plan unasked."""
    folder = sparse / "student"
    assert Sampler.read(folder) == Sampler.read(four / "student") == Sampler("milestones", (999, 749, 499, 249), 1.0)
    ran, run = Receipt.read(sparse / "receipt.json").ran, RunDir.open(sparse)
    assert [layer["mask"] for layer in ran.layers] == ["1:2"] * 2 and 0 < ran.skipped_share < 1
    assert ran.timesteps == (999, 749, 499, 249) and (ran.masks, ran.plan) == ("1:2", MaskPlan.read(folder).digest)
    start = opened(prepared[0], checkpoint=str(four))
    assert run.lineage() == (start.weights_digest, *RunDir.open(four).lineage())
    assert Lineage.read(folder / WEIGHTS) == Lineage(run.lineage(), ran.plan)
    assert own_plan(opened(prepared[0], checkpoint=str(sparse))) == MaskPlan.read(folder)
    assert "4 steps, without guidance" in (folder / "README.md").read_text(encoding="utf-8")
    progress = Silent()
    assert distill_small_kd(*prepared, sparse, progress, checkpoint=str(four)) == folder
    assert progress.lines == [f"{sparse} is done already"]
    flags = ("--model", str(prepared[0]), "--checkpoint", str(sparse), "--device", "cpu")
    code, _, err = evdit("generate", "a red circle", *flags, "-o", "out.mp4")
    assert code == 0, err
    ran = Receipt.read(Path("out.json")).ran
    assert [layer["mask"] for layer in ran.layers] == ["1:2"] * 2 and len(ran.timesteps) == 4


def test_a_start_without_a_sampler_leaves_none(prepared: tuple[Path, Path], tmp_path: Path):
    """It is sampled as its model is, with guidance."""
    folder = distill_small_kd(*prepared, tmp_path / "run", iterations=1)
    assert Sampler.read(folder) is None and not (folder / "sampler.json").exists()
    ran = Receipt.read(tmp_path / "run" / "receipt.json").ran
    assert (ran.scheduler, len(ran.timesteps), ran.guidance) == ("ddim", 3, 2.0)
    assert "3 steps, with guidance 2" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_process_resumes_bit_equal(prepared: tuple[Path, Path], four: Path, tmp_path: Path, rank: int):
    """Killed one iteration behind a checkpoint; of pairs, an adapter that is gone on with."""
    changes = {"lora_rank": rank, "checkpoint": str(four / "student" / "adapter") if rank else str(four)}
    whole = distill_small_kd(*prepared, tmp_path / "whole", **changes)
    killed = run_forked(1, partial(distill_small_kd, progress=KillsAt(3), **changes), *prepared, tmp_path / "cut")
    assert killed.codes == [-signal.SIGKILL], killed.err
    resumed = distill_small_kd(*prepared, tmp_path / "cut", **changes)
    ends = [load_file(each / WEIGHTS) for each in (whole, resumed)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert [line["iteration"] for line in lines_of(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]
    reports = [(tmp_path / run / "layers.json").read_text(encoding="utf-8") for run in ("whole", "cut")]
    assert reports[0] == reports[1], "what was before is that of the start, not of the checkpoint"


def test_a_stopped_run_goes_on_and_a_changed_one_is_refused(prepared: tuple[Path, Path], tmp_path: Path):
    """Weights of the loss may change where one insists; the masks may not."""
    run = tmp_path / "run"
    with pytest.raises(Interrupted, match="3 of 6"):
        distill_small_kd(*prepared, run, StopsAt(3))
    with pytest.raises(EvditError, match="hidden_weight: was 1.0, is 2.0") as caught:
        distill_small_kd(*prepared, run, hidden_weight=2.0)
    assert caught.value.exit_code == USAGE and "--allow-changed" in caught.value.next_steps
    with pytest.raises(EvditError, match="what can't change any more: masks: was"):
        distill_small_kd(*prepared, run, allow_changed=True, masks=str(plan_of_one(prepared[0], tmp_path)))
    folder = distill_small_kd(*prepared, run, allow_changed=True, hidden_weight=2.0)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "`hidden_weight` from 1.0 to 2.0 at iteration 3" in card
    with pytest.raises(EvditError, match="is finished, with other values"):
        distill_small_kd(*prepared, run, allow_changed=True)


def plan_of_one(model: Path, folder: Path) -> Path:
    """A plan whose masks keep another frame global than 1:2 does."""
    backbone = opened(model)
    plan = MaskPlan.uniform("tiny", backbone.grid(9, 32, 48), backbone.architecture, TileMask(3, (1,)))
    return plan.write(folder / "plan-of-one.json")


def test_a_collapse_stops_with_the_last_good_checkpoint(prepared: tuple[Path, Path], tmp_path: Path, monkeypatch):
    """It is set aside, and the advice is this command's."""
    planted = {4: "planted"}
    judged = watch.Watch._judged
    monkeypatch.setattr(watch.Watch, "_judged", lambda self, at: planted.get(at) or judged(self, at))
    changes = {"previews": 1, "learning_rate": 1e-4}
    with pytest.raises(
        EvditError, match="student collapsed at iteration 4: planted; .* of iteration 2 is kept"
    ) as caught:
        distill_small_kd(*prepared, tmp_path / "run", **changes)
    assert caught.value.exit_code == FAILED
    assert list(caught.value.next_steps) == ["--set distill_kd.learning_rate=... (smaller) --allow-changed"]
    planted.clear()
    distill_small_kd(*prepared, tmp_path / "run", allow_changed=True, **{**changes, "learning_rate": 5e-5})
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["collapsed-000004", "step-000004", "step-000006"]


def test_a_loss_that_is_not_finite_stops(prepared: tuple[Path, Path], tmp_path: Path):
    with pytest.raises(EvditError, match="is not finite|loss is (nan|inf)") as caught:
        distill_small_kd(*prepared, tmp_path / "run", learning_rate=1e30)
    assert caught.value.exit_code == FAILED


def test_a_finished_run_is_made_longer(prepared: tuple[Path, Path], tmp_path: Path):
    """What was before stays that of the start; until it is done the old command says how it goes on."""
    short = {"iterations": 2, "learning_rate": 1e-4}
    run = tmp_path / "run"
    distill_small_kd(*prepared, run, **short)
    first = json.loads((run / "layers.json").read_text(encoding="utf-8"))["layers"]
    with pytest.raises(Interrupted):
        distill_small_kd(*prepared, run, StopsAt(1), allow_changed=True, **{**short, "iterations": 6})
    progress = Silent()
    distill_small_kd(*prepared, run, progress, **short)
    assert "--set distill_kd.iterations=6 goes on with that" in progress.lines[0]
    distill_small_kd(*prepared, run, **{**short, "iterations": 6})
    last = json.loads((run / "layers.json").read_text(encoding="utf-8"))["layers"]
    assert [each["before"] for each in last] == [each["before"] for each in first]
    assert [each["after"] for each in last] != [each["after"] for each in first]


@pytest.mark.numerical
def test_an_adapter_is_gone_on_with(prepared: tuple[Path, Path], four: Path, tmp_path: Path):
    """What is written is one adapter over the model: it alone makes what the student makes, and no other pairs."""
    model, start = prepared[0], str(four / "student" / "adapter")
    folder = distill_small_kd(*prepared, tmp_path / "run", checkpoint=start, lora_rank=2, learning_rate=1e-2)
    whole, adapter = (opened(model, checkpoint=str(each)) for each in (folder, folder / "adapter"))
    base, before = opened(model), opened(model, checkpoint=start)
    assert adapter.lineage == (base.weights_digest,)
    assert whole.lineage == (before.weights_digest, base.weights_digest)
    assert Receipt.read(tmp_path / "run" / "receipt.json").ran.weights == before.weights_digest
    assert adapter.sampler == whole.sampler == Sampler.read(four / "student")
    assert own_plan(adapter) == MaskPlan.read(folder)
    assert_close(sampled(adapter)[1], sampled(whole)[1], planted=sampled(before)[1], rtol=1e-3, atol=1e-4)
    still = distill_small_kd(*prepared, tmp_path / "still", checkpoint=start, lora_rank=2, learning_rate=0.0)
    kept, was = (load_file(each / "adapter_model.safetensors") for each in (still / "adapter", Path(start)))
    assert_close(kept, was, rtol=1e-5, atol=1e-7, planted={name: 2 * x + 1 for name, x in was.items()})
    assert kept.keys() == load_file(folder / "adapter" / "adapter_model.safetensors").keys()


def test_an_adapter_of_another_rank_is_refused(prepared: tuple[Path, Path], four: Path, tmp_path: Path):
    start = four / "student" / "adapter"
    with pytest.raises(EvditError, match="pairs of rank 2: it is gone on with at its own rank, not at 4") as caught:
        distill_small_kd(*prepared, tmp_path / "run", checkpoint=str(start), lora_rank=4)
    assert caught.value.exit_code == USAGE and caught.value.next_steps[0] == "--lora-rank 2"
    progress = Silent()
    distill_small_kd(*prepared, tmp_path / "run", progress, checkpoint=str(four), lora_rank=4, iterations=1)
    assert any(line.endswith(f"--checkpoint {start} goes on with the adapter's") for line in progress.lines)


def test_steps_are_distilled_after_masks(prepared: tuple[Path, Path], sparse: Path, tmp_path: Path):
    """The other order: the plan goes on being worn, and its student's weights come from the masked one's."""
    folder = distill_small(*prepared, tmp_path / "run", checkpoint=str(sparse), steps="2", iterations=1)
    assert MaskPlan.read(folder).digest == MaskPlan.read(sparse).digest
    assert Sampler.read(folder) == Sampler("milestones", (999, 499), 1.0)
    assert opened(prepared[0], checkpoint=str(sparse)).weights_digest in RunDir.open(tmp_path / "run").lineage()


@pytest.mark.numerical
@pytest.mark.parametrize("rank", [0, 2])
def test_previews_stand_beside_the_dense_teacher_s(prepared: tuple[Path, Path], four: Path, tmp_path: Path, rank: int):
    """The teacher's latents are those of the start with full attention; looking changes nothing."""
    changes = {"checkpoint": str(four), "lora_rank": rank, "iterations": 3, "learning_rate": 1e-4}
    plain = distill_small_kd(*prepared, tmp_path / "plain", **changes)
    seen = distill_small_kd(*prepared, tmp_path / "seen", previews=1, **changes)
    assert all(torch.equal(x, load_file(plain / WEIGHTS)[name]) for name, x in load_file(seen / WEIGHTS).items())
    previews = tmp_path / "seen" / "previews"
    assert sorted(each.stem for each in previews.glob("*.png")) == [*(f"step-00000{i}" for i in (0, 2, 3)), "teacher"]
    looks = [json.loads(line) for line in (previews / "looks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [look["iteration"] for look in looks] == [0, 2, 3] and all(look["gap"] > 0 for look in looks)
    spec = SampleSpec(9, 32, 48, 4, 1.0, "milestones")
    text = TextStates(*open_data(str(prepared[1])).text([0]))
    dense, masked = (opened(prepared[0], checkpoint=str(four)) for _ in range(2))
    masked.apply_plan(MaskPlan.read(seen), 1)
    wanted, wrong = (sample(each, spec, text, None, generators_for([0]), Silent()) for each in (dense, masked))
    found = load_file(previews / "teacher.safetensors")["latents"]
    assert_close(found, wanted, rtol=1e-4, atol=1e-4, planted=wrong)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"masks": "auto"}, "masks is auto, and no plan lies with .*: under full attention there is nothing to distil"),
        ({"masks": "none"}, "masks is none, and it is dense"),
        ({"masks": "2:1"}, "masks is 2:1, and it is dense"),
        ({"masks": "9:9"}, "9:9"),
        ({"data": None}, "there is no data to train on"),
        ({"data": "nowhere"}, "nowhere holds no prepared data"),
        ({"checkpoint": "nowhere"}, "nowhere is no checkpoint"),
        ({"clips": 17}, "clips is 17: .* holds 16 clips, 2 of them held out"),
        ({"batch_size": 3, "accumulation": 4}, "batch_size is 3: 4 parts need at least 4 clips"),
        ({"shard": "full"}, "shard=full can't go with distill-kd"),
        ({"attention_weight": 0, "hidden_weight": 0, "output_weight": 0}, "all weights of the loss are 0"),
        ({"kernel": "flash"}, "flash"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_is_made(prepared: tuple[Path, Path], tmp_path: Path, changes, told):
    options = {"data": str(prepared[1]), **changes}
    with pytest.raises(EvditError, match=told) as caught:
        distill_small_kd(prepared[0], options.pop("data"), tmp_path / "run", **options)
    assert caught.value.exit_code == USAGE and not (tmp_path / "run").exists()


class PreparesNothing:
    """What no backbone is."""


def test_a_backbone_that_tells_no_layers_is_refused(prepared: tuple[Path, Path], tmp_path: Path, monkeypatch):
    """In words, before a run is made."""
    monkeypatch.setattr(kd_networks, "TellsLayers", PreparesNothing)
    with pytest.raises(EvditError, match="tiny can't be taught layer by layer: its backbone does not offer") as caught:
        distill_small_kd(*prepared, tmp_path / "run")
    assert caught.value.exit_code == USAGE and not (tmp_path / "run").exists()


def test_data_and_plans_of_another_model_are_refused(prepared: tuple[Path, Path], tmp_path: Path):
    """Data by their model's digests, a plan by its layers and by the weights that it was searched on."""
    other = write_pipeline(copied(prepared[0], tmp_path / "other"), seed=5)
    with pytest.raises(EvditError, match="do not fit tiny"):
        distill_small_kd(other, prepared[1], tmp_path / "run")
    plan = MaskPlan.read(plan_of_one(prepared[0], tmp_path))
    elsewhere = MaskPlan(plan.backbone, plan.grid, plan.masks, "0" * 64, architecture=plan.architecture)
    file = elsewhere.write(tmp_path / "elsewhere.json")
    with pytest.raises(EvditError, match="searched on"):
        distill_small_kd(*prepared, tmp_path / "run", masks=str(file))
    longer = MaskPlan(plan.backbone, plan.grid, plan.masks + plan.masks[:1]).write(tmp_path / "longer.json")
    with pytest.raises(EvditError, match="the plan has 3 layers, tiny has 2"):
        distill_small_kd(*prepared, tmp_path / "run", masks=str(longer))
    assert not (tmp_path / "run").exists()
    distill_small_kd(*prepared, tmp_path / "run", masks=str(file), allow_other_weights=True, iterations=1)
    student = opened(prepared[0], checkpoint=str(tmp_path / "run" / "student"))
    worn = find_plan("auto", student, student.defaults, False)
    assert worn.searched_on == "0" * 64, "who insisted once need not again: the weights were trained under it"
    with pytest.raises(EvditError, match="searched on"):
        find_plan(str(file), student, student.defaults, False)


def test_weights_can_not_be_swapped_under_a_run(prepared: tuple[Path, Path], tmp_path: Path):
    """Other weights under the same path, and another sampler beside them."""
    model = copied(prepared[0], tmp_path / "model")
    start = distill_small(model, prepared[1], tmp_path / "four", iterations=1)
    copy = copied(start, tmp_path / "copy")
    with pytest.raises(Interrupted):
        distill_small_kd(model, prepared[1], tmp_path / "run", StopsAt(2), checkpoint=str(copy))
    Sampler("milestones", (999, 749, 499, 99), 1.0).write(copy)
    with pytest.raises(EvditError, match="timesteps: was"):
        distill_small_kd(model, prepared[1], tmp_path / "run", allow_changed=True, checkpoint=str(copy))
    again = distill_small(model, prepared[1], tmp_path / "other", iterations=2)
    (copy / WEIGHTS).write_bytes((again / WEIGHTS).read_bytes())
    with pytest.raises(EvditError, match="start_weights: was"):
        distill_small_kd(model, prepared[1], tmp_path / "run", allow_changed=True, checkpoint=str(copy))
